#include "eval/outside.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>

#include <random>

namespace conclave::test {
namespace fs = std::filesystem;
namespace {

std::string lines_of(const std::string& file, const std::string& wanted = "") {
  std::ifstream in(file);
  std::string text;
  for (std::string line; std::getline(in, line);)
    if (line.find(wanted) != std::string::npos) text += line + "\n";
  return text;
}

std::string first_word_of(const std::string& file, const std::string& key) {
  std::istringstream line(lines_of(file, key));
  std::string name, value;
  line >> name >> value;
  return value;
}

void replace_all(std::string& text, const std::string& from, const std::string& to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) text.replace(at, from.size(), to);
}

}  // namespace

std::vector<pid_t> processes_with(const std::string& word) {
  std::vector<pid_t> found;
  std::error_code error;
  for (fs::directory_iterator entry("/proc", error), end; !error && entry != end; entry.increment(error)) {
    const pid_t pid = std::atoi(entry->path().filename().c_str());
    if (pid > 0 && pid != ::getpid() && read_all(entry->path() / "cmdline").find(word) != std::string::npos) found.push_back(pid);
  }
  return found;
}

Outside::Outside() {
  std::random_device random;
  for (int i = 0; i < 12; ++i) mark_ += static_cast<char>('a' + random() % 26), secret_ += static_cast<char>('A' + random() % 26);
  folder_.write("secret", secret_ + "\n");
  ::chmod(folder_.path().c_str(), 0777);  // the programs' user must not be what keeps them out
  ::chmod((folder_ / "secret").c_str(), 0666);
  inherited_ = ::open((folder_ / "secret").c_str(), O_RDONLY);  // no O_CLOEXEC: anybody who forgets to close it passes it on
  start_victim();
  listen_tcp("@PORT@", AF_INET);
  listen_tcp("@PORT6@", AF_INET6);
  listen_unix("@UNIX@", (folder_ / "socket").string(), false);
  listen_unix("@ABSTRACT@", mark_ + "-socket", true);
  sockaddr_in any{};
  any.sin_family = AF_INET, any.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof any;
  const int udp = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  ::bind(udp, reinterpret_cast<sockaddr*>(&any), size);
  ::getsockname(udp, reinterpret_cast<sockaddr*>(&any), &size);
  listeners_["@UDP@"] = {udp, std::to_string(ntohs(any.sin_port)), true};
  before_ = look();
}

Outside::~Outside() {
  ::kill(victim_, SIGKILL);
  ::waitpid(victim_, nullptr, 0);
  ::close(inherited_);
  for (const auto& [name, listener] : listeners_) ::close(listener.descriptor);
}

void Outside::start_victim() {
  victim_ = ::fork();
  if (victim_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) ::pause();
  }
  while (first_word_of("/proc/" + std::to_string(victim_) + "/status", "State:") != "S") ::usleep(1000);
}

void Outside::listen_tcp(const char* name, int family) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  address.ss_family = static_cast<sa_family_t>(family);
  if (family == AF_INET) reinterpret_cast<sockaddr_in&>(address).sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  else reinterpret_cast<sockaddr_in6&>(address).sin6_addr = in6addr_loopback;
  const int descriptor = ::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  ::bind(descriptor, reinterpret_cast<sockaddr*>(&address), family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6));
  ::listen(descriptor, 8);
  ::getsockname(descriptor, reinterpret_cast<sockaddr*>(&address), &size);
  const in_port_t port = family == AF_INET ? reinterpret_cast<sockaddr_in&>(address).sin_port : reinterpret_cast<sockaddr_in6&>(address).sin6_port;
  listeners_[name] = {descriptor, std::to_string(ntohs(port))};
}

void Outside::listen_unix(const char* name, const std::string& path, bool abstract) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path + (abstract ? 1 : 0), sizeof address.sun_path - 2);
  const int descriptor = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const size_t size = offsetof(sockaddr_un, sun_path) + path.size() + 1;
  ::bind(descriptor, reinterpret_cast<sockaddr*>(&address), static_cast<socklen_t>(size));
  ::listen(descriptor, 8);
  if (!abstract) ::chmod(path.c_str(), 0777);
  listeners_[name] = {descriptor, path};
}

std::string Outside::fill_in(std::string text) const {
  replace_all(text, "@SECRET@", (folder_ / "secret").string());
  replace_all(text, "@FOLDER@", folder_.path().string());
  replace_all(text, "@VICTIM@", std::to_string(victim_));
  replace_all(text, "@MARK@", mark_);
  for (const auto& [name, listener] : listeners_) replace_all(text, name, listener.address);
  return text;
}

std::map<std::string, std::string> Outside::look() const {
  std::map<std::string, std::string> seen;
  std::error_code error;
  for (const auto& entry : fs::recursive_directory_iterator(folder_.path(), error)) {
    struct stat status {};
    ::lstat(entry.path().c_str(), &status);
    seen["files in its folder"] += entry.path().filename().string() + " " + std::to_string(status.st_mode) + " " +
                                   std::to_string(status.st_nlink) + " " + std::to_string(status.st_mtime) + "\n";
  }
  seen["the file's text"] = read_all(folder_ / "secret");
  const std::string victim = "/proc/" + std::to_string(victim_);
  for (const char* key : {"State:", "TracerPid:", "Uid:", "CapEff:"}) seen[std::string("the other process's ") + key] = first_word_of(victim + "/status", key);
  for (const char* key : {"State:", "TracerPid:", "Uid:", "CapEff:", "Groups:"}) {
    if (key != std::string("State:")) seen[std::string("our own ") + key] = first_word_of("/proc/self/status", key);
  }
  seen["the limits of the other process"] = lines_of(victim + "/limits");
  seen["mounts"] = lines_of("/proc/self/mountinfo");
  seen["system settings"] = lines_of("/proc/sys/kernel/core_pattern") + lines_of("/proc/sys/kernel/domainname");
  seen["System V segments"] = lines_of("/proc/sysvipc/shm", std::to_string(0x1c0ffee)) + lines_of("/proc/sysvipc/sem", std::to_string(0x1c0ffee)) +
                              lines_of("/proc/sysvipc/msg", std::to_string(0x1c0ffee));
  seen["keys"] = lines_of("/proc/keys", mark_);
  for (const char* place : {"/tmp", "/dev/shm", "/usr", "/usr/lib", "/lib"}) {
    if (fs::exists(fs::path(place) / mark_, error)) seen["files with the mark"] += place;
  }
  utsname names{};
  ::uname(&names);
  seen["host name"] = names.nodename;
  seen["clock"] = std::to_string((::time(nullptr) - static_cast<time_t>([] {
                                    timespec t{};
                                    ::clock_gettime(CLOCK_BOOTTIME, &t);
                                    return t.tv_sec;
                                  }())) / 600);
  return seen;
}

std::vector<std::string> Outside::visitors() {
  std::vector<std::string> found;
  for (const auto& [name, listener] : listeners_) {
    pollfd wait{listener.descriptor, POLLIN, 0};
    while (::poll(&wait, 1, 0) > 0) {
      char byte;
      const int visitor = listener.datagrams ? -1 : ::accept(listener.descriptor, nullptr, nullptr);
      if (listener.datagrams) ::recv(listener.descriptor, &byte, 1, 0);
      if (visitor >= 0) ::close(visitor);
      found.push_back("a visitor at " + name);
    }
  }
  return found;
}

std::vector<std::string> Outside::traces(const std::string& output) {
  std::vector<std::string> found = visitors();
  const auto now = look();
  for (const auto& [what, value] : now)
    if (before_[what] != value) found.push_back(what + ": " + before_[what] + " -> " + value);
  for (const auto& [what, value] : before_)
    if (!now.contains(what)) found.push_back(what + " gone");
  before_ = now;
  if (output.find("ESCAPED") != std::string::npos) found.push_back("its own word");
  if (output.find(secret_) != std::string::npos) found.push_back("the secret in its output");
  for (const pid_t pid : processes_with(mark_)) found.push_back("process " + std::to_string(pid) + " left");
  return found;
}

void Outside::clean_up() const {
  for (const pid_t pid : processes_with(mark_)) ::kill(pid, SIGKILL);
}

}  // namespace conclave::test
