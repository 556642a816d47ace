// The launcher of rank processes on this host.
#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <random>
#include <set>
#include <utility>

#include <fmt/format.h>

#include "comm/launch.h"
#include "core/error.h"

namespace conclave {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kFailed = exit_code(Error::Kind::network);
constexpr auto kToEnd = std::chrono::seconds(2);  // between SIGTERM and SIGKILL
constexpr size_t kLinesKept = 1000;

struct Child {
  pid_t pid = 0;  // 0: has ended
  int errors = -1;
  std::string line;  // of stderr, as far as it has come
};

class Launcher {
 public:
  explicit Launcher(const LocalRanks& ranks) : ranks_(ranks), children_(static_cast<size_t>(ranks.size)) {
    sigemptyset(&signals_);
    for (const int signal : {SIGCHLD, SIGINT, SIGTERM}) sigaddset(&signals_, signal);
    pthread_sigmask(SIG_BLOCK, &signals_, &before_);
    signal_fd_ = signalfd(-1, &signals_, SFD_CLOEXEC | SFD_NONBLOCK);
  }
  ~Launcher() {
    for (Child& child : children_) {
      if (child.pid > 0) {
        kill(child.pid, SIGKILL);
        waitpid(child.pid, nullptr, 0);
      }
      if (child.errors >= 0) close(child.errors);
    }
    if (signal_fd_ >= 0) close(signal_fd_);
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  Launcher(const Launcher&) = delete;
  Launcher& operator=(const Launcher&) = delete;

  int run();

 private:
  void start(int rank, const std::string& job);
  [[noreturn]] void become(int rank, const std::vector<std::string>& variables, int errors) const;
  void read_errors(int rank);
  void print(int rank, const std::string& line);
  void forward_signals();
  void collect();
  void hurry();
  bool running() const {
    for (const Child& child : children_)
      if (child.pid > 0) return true;
    return false;
  }
  void signal_all(int signal) {
    for (const Child& child : children_)
      if (child.pid > 0) kill(child.pid, signal);
  }

  const LocalRanks& ranks_;
  std::vector<Child> children_;
  sigset_t signals_{}, before_{};
  int signal_fd_ = -1;
  std::set<std::string> printed_;
  int result_ = 0;
  Clock::time_point failed_{};  // when the first rank did
  int steps_ = 0;               // taken since to end the others
};

void Launcher::start(int rank, const std::string& job) {
  std::array<int, 2> pipe_ends{};
  if (pipe2(pipe_ends.data(), O_CLOEXEC) != 0) throw Error(Error::Kind::internal, fmt::format("pipe for rank {}: {}", rank, std::strerror(errno)));
  std::vector<std::string> variables;
  for (char** v = environ; *v; ++v) variables.emplace_back(*v);
  const auto add = [&](std::string_view name, std::string_view value) {
    const std::string begin = fmt::format("{}=", name);
    std::erase_if(variables, [&](const std::string& v) { return v.starts_with(begin); });
    variables.push_back(begin + std::string(value));
  };
  for (const auto& [name, value] : ranks_.extra) add(name, value);
  add("WORLD_SIZE", std::to_string(ranks_.size));
  add("RANK", std::to_string(rank));
  add("LOCAL_RANK", std::to_string(rank));
  add("MASTER_ADDR", "127.0.0.1");
  add("CONCLAVE_JOB", job);
  std::erase_if(variables, [](const std::string& v) { return v.starts_with("MASTER_PORT="); });

  const pid_t parent = getpid(), pid = fork();
  if (pid < 0) {
    close(pipe_ends[0]);
    close(pipe_ends[1]);
    throw Error(Error::Kind::internal, fmt::format("cannot start rank {}: {}", rank, std::strerror(errno)));
  }
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(kFailed);
    become(rank, variables, pipe_ends[1]);
  }
  close(pipe_ends[1]);
  fcntl(pipe_ends[0], F_SETFL, O_NONBLOCK);
  children_[static_cast<size_t>(rank)] = {pid, pipe_ends[0], {}};
}

void Launcher::become(int rank, const std::vector<std::string>& variables, int errors) const {
  std::vector<char*> arguments, environment;
  for (const std::string& a : ranks_.command) arguments.push_back(const_cast<char*>(a.c_str()));
  for (const std::string& v : variables) environment.push_back(const_cast<char*>(v.c_str()));
  arguments.push_back(nullptr);
  environment.push_back(nullptr);
  if (rank > 0)
    if (const int nothing = open("/dev/null", O_RDONLY); nothing >= 0) dup2(nothing, STDIN_FILENO);
  dup2(errors, STDERR_FILENO);
  pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  execvpe(arguments[0], arguments.data(), environment.data());
  const std::string text = fmt::format("{}: {}\n", arguments[0], std::strerror(errno));
  if (write(STDERR_FILENO, text.data(), text.size()) < 0) _exit(1);
  _exit(1);
}

/// A line that another rank has printed already tells nothing new.
void Launcher::print(int rank, const std::string& line) {
  if (rank > 0 && printed_.contains(line)) return;
  if (printed_.size() < kLinesKept) printed_.insert(line);
  fmt::print(stderr, "{}\n", line);
}

void Launcher::read_errors(int rank) {
  Child& child = children_[static_cast<size_t>(rank)];
  std::array<char, 4096> bytes;
  while (child.errors >= 0) {
    const ssize_t got = read(child.errors, bytes.data(), bytes.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
      if (!child.line.empty()) print(rank, std::exchange(child.line, {}));
      close(std::exchange(child.errors, -1));
      return;
    }
    for (const char c : std::string_view(bytes.data(), static_cast<size_t>(got))) {
      if (c == '\n') print(rank, std::exchange(child.line, {}));
      else child.line += c;
    }
  }
}

void Launcher::forward_signals() {
  signalfd_siginfo info;
  while (read(signal_fd_, &info, sizeof info) == static_cast<ssize_t>(sizeof info))
    if (info.ssi_signo != SIGCHLD) signal_all(static_cast<int>(info.ssi_signo));
}

void Launcher::collect() {
  for (int rank = 0; rank < ranks_.size; ++rank) {
    Child& child = children_[static_cast<size_t>(rank)];
    int status = 0;
    if (child.pid <= 0 || waitpid(child.pid, &status, WNOHANG) != child.pid) continue;
    child.pid = 0;
    read_errors(rank);
    const bool killed = WIFSIGNALED(status);
    const int code = killed ? kFailed : WEXITSTATUS(status);
    if (code == 0 || result_ != 0) continue;
    result_ = code;
    failed_ = Clock::now();
    if (killed) print(0, fmt::format("error: rank {} of {} was ended by signal {} ({})", rank, ranks_.size, WTERMSIG(status), strsignal(WTERMSIG(status))));
  }
}

/// The others see a failure by themselves; a rank that does not, a stopped one for instance, is ended.
void Launcher::hurry() {
  if (result_ == 0) return;
  const auto since = Clock::now() - failed_;
  const auto grace = std::chrono::milliseconds(ranks_.grace_ms);
  if (steps_ == 0 && since > grace) {
    signal_all(SIGTERM);
    ++steps_;
  } else if (steps_ == 1 && since > grace + kToEnd) {
    signal_all(SIGKILL);
    ++steps_;
  }
}

int Launcher::run() {
  std::random_device random;
  const std::string job = fmt::format("local-{}-{:08x}", getpid(), random());
  for (int rank = 0; rank < ranks_.size; ++rank) start(rank, job);
  while (running()) {
    std::vector<pollfd> watched{{signal_fd_, POLLIN, 0}};
    for (const Child& child : children_)
      if (child.errors >= 0) watched.push_back({child.errors, POLLIN, 0});
    poll(watched.data(), watched.size(), 100);
    forward_signals();
    for (int rank = 0; rank < ranks_.size; ++rank) read_errors(rank);
    collect();
    hurry();
  }
  for (int rank = 0; rank < ranks_.size; ++rank) read_errors(rank);
  return result_;
}

}  // namespace

int run_local_ranks(const LocalRanks& ranks) {
  if (ranks.size < 1 || ranks.command.empty())
    throw Error(Error::Kind::bad_input, fmt::format("{} ranks of a command of {} words; wanted: at least one of each", ranks.size, ranks.command.size()));
  return Launcher(ranks).run();
}

}  // namespace conclave
