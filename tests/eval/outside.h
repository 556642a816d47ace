#pragma once
// Everything around a sandbox that a hostile program could reach for, and what it looks like before and after.
#include <signal.h>
#include <sys/types.h>

#include <ctime>
#include <map>
#include <string>
#include <vector>

#include "support/temp_folder.h"

namespace conclave::test {

class Outside {
 public:
  Outside();
  ~Outside();
  Outside(const Outside&) = delete;

  /// `text` with the words of hostile_programs.h replaced.
  std::string fill_in(std::string text) const;
  /// What has changed outside since the last call (or the start), and what of the outside stands in `output`.
  std::vector<std::string> traces(const std::string& output);
  /// Ends what carries the mark.
  void clean_up() const;

 private:
  struct Listener {
    int descriptor = -1;
    std::string address;
    bool datagrams = false;
  };
  void listen_tcp(const char* name, int family);
  void listen_unix(const char* name, const std::string& path, bool abstract);
  std::map<std::string, std::string> look() const;
  std::vector<std::string> visitors();
  void start_victim();

  TempFolder folder_;
  std::string mark_, secret_;
  pid_t victim_ = -1;
  int inherited_ = -1;
  std::map<std::string, Listener> listeners_;
  std::map<std::string, std::string> before_;
};

/// Processes of the machine whose command line holds `word`.
std::vector<pid_t> processes_with(const std::string& word);

}  // namespace conclave::test
