#pragma once
// Runs the real program as a user would: arguments, standard input and environment in; exit code and both outputs back,
// within a time limit (a program that hangs is killed and fails the test).
#include <csignal>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace conclave::testing {

struct ProcessInput {
  std::vector<std::string> arguments;
  std::string stdin_text = {};
  std::map<std::string, std::string> environment = {};  ///< added to this process's own
  /// Sends this signal once standard output holds that many bytes; 0: never.
  int signal = 0;
  size_t signal_after_bytes = 1;
  bool close_stdout_early = false;  ///< the reader goes away after the first bytes
  double timeout_s = 60;
};

struct ProcessResult {
  int exit_code = -1;  ///< 128 + signal when a signal ended it
  bool timed_out = false;
  std::string out, err;
};

ProcessResult run_process(const std::string& program, const ProcessInput& input);

/// The built binary with these arguments.
ProcessResult conclave(std::vector<std::string> arguments, std::string stdin_text = {});

/// A fresh folder, removed at the end.
struct TemporaryFolder {
  TemporaryFolder();
  ~TemporaryFolder();
  std::filesystem::path write(const std::string& name, const std::string& content) const;
  std::filesystem::path path;
};

/// A golden checkpoint of the repository.
std::string golden(const std::string& name);

}  // namespace conclave::testing
