#include "eval/sandbox.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <utility>
#include <vector>

#include "core/error.h"
#include "eval/sandbox_child.h"
#include "eval/sandbox_filter.h"

namespace conclave {
namespace {
namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

struct Tool {
  const char *program, *file_name;
};
Tool tool_of(Language language) {
  switch (language) {
    case Language::python: return {"python3", "program.py"};
    case Language::cpp: return {"g++", "program.cpp"};
    case Language::java: return {"javac", "Main.java"};
    case Language::javascript: return {"node", "program.js"};
    case Language::go: return {"go", "main.go"};
  }
  return {};
}

/// The file that `name` means on PATH, links resolved; only files under /usr are seen inside the sandbox.
std::string find_tool(std::string_view name) {
  const char* path = std::getenv("PATH");
  for (std::string_view rest = path ? path : "/usr/bin:/bin"; !rest.empty();) {
    const size_t colon = rest.find(':');
    const fs::path candidate = fs::path(rest.substr(0, colon)) / name;
    rest.remove_prefix(colon == std::string_view::npos ? rest.size() : colon + 1);
    std::error_code error;
    const fs::path real = fs::canonical(candidate, error);
    if (!error && real.string().starts_with("/usr/") && fs::is_regular_file(real, error) && ::access(real.c_str(), X_OK) == 0)
      return real.string();
  }
  return "";
}

std::string require_tool(std::string_view name, Language language) {
  const std::string found = find_tool(name);
  if (found.empty()) {
    throw Error(Error::Kind::unsupported,
                fmt::format("language {} is not available: {} is not on PATH under /usr; install it", name_of(language), name));
  }
  return found;
}

bool is_go_test(std::string_view text) { return text.find("testing.T") != std::string_view::npos; }

/// The commands that turn the text into a result: at most "compile" and "run".
std::vector<std::vector<std::string>> commands_of(Language language, std::string_view text) {
  const std::string tool = require_tool(tool_of(language).program, language);
  switch (language) {
    case Language::python: return {{tool, "-s", "-B", "program.py"}};
    case Language::cpp: return {{tool, "-std=c++11", "-O1", "-o", "program", "program.cpp", "-lpthread"}, {"/tmp/program"}};
    case Language::java: {
      const std::string small[] = {"-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-Xmx384m"};
      std::vector<std::string> compile{tool}, run{require_tool("java", language)};
      for (const std::string& option : small) compile.push_back("-J" + option), run.push_back(option);
      compile.insert(compile.end(), {"-encoding", "UTF-8", "-proc:none", "-nowarn", "Main.java"});
      run.insert(run.end(), {"-cp", "/tmp", "Main"});
      return {compile, run};
    }
    case Language::javascript: return {{tool, "--max-old-space-size=384", "program.js"}};
    case Language::go:
      if (is_go_test(text)) return {{tool, "test", "-c", "-o", "program", "main_test.go"}, {"/tmp/program"}};
      return {{tool, "build", "-o", "program", "main.go"}, {"/tmp/program"}};
  }
  return {};
}

std::vector<SandboxPlace> places() {
  std::vector<SandboxPlace> list{{.source = "/usr", .target = "usr", .link = ""}};
  std::error_code error;
  for (const char* name : {"bin", "sbin", "lib", "lib32", "lib64", "libx32"}) {
    const fs::path place = fs::path("/") / name;
    if (fs::is_symlink(place, error))
      list.push_back({.source = "", .target = name, .link = fs::read_symlink(place, error).string()});
    else if (fs::is_directory(place, error))
      list.push_back({.source = place.string(), .target = name, .link = ""});
  }
  list.push_back({.source = "", .target = "etc", .link = ""});
  if (fs::exists("/etc/ld.so.cache", error)) list.push_back({"/etc/ld.so.cache", "etc/ld.so.cache", "", false});
  if (fs::is_directory("/etc/alternatives", error)) list.push_back({"/etc/alternatives", "etc/alternatives", ""});  // links that libraries of /usr go through
  for (const auto& entry : fs::directory_iterator("/etc", error)) {  // a Java runtime keeps its settings there
    const std::string name = entry.path().filename().string();
    if (name.starts_with("java-") && entry.is_directory(error)) list.push_back({entry.path().string(), "etc/" + name, ""});
  }
  list.push_back({.source = "", .target = "dev", .link = ""});
  for (const char* device : {"null", "zero", "urandom", "random"})
    list.push_back({fmt::format("/dev/{}", device), fmt::format("dev/{}", device), "", false});
  return list;
}

class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor() { close(); }
  void close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

struct Pipe {
  Pipe() {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) throw Error(Error::Kind::internal, fmt::format("sandbox: no pipe: {}", std::strerror(errno)));
    read = Descriptor(ends[0]), write = Descriptor(ends[1]);
  }
  Descriptor read, write;
};

std::string first_line(const std::string& file) {
  std::string line;
  std::getline(std::ifstream(file), line);
  return line;
}

/// Settings that are known to forbid namespaces.
std::string namespace_hint() {
  if (first_line("/proc/sys/kernel/unprivileged_userns_clone") == "0") return "; kernel.unprivileged_userns_clone is 0";
  if (first_line("/proc/sys/user/max_user_namespaces") == "0") return "; user.max_user_namespaces is 0";
  if (first_line("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1")
    return "; kernel.apparmor_restrict_unprivileged_userns is 1";
  return "; a container must be allowed to make namespaces (its seccomp profile or --privileged)";
}

[[noreturn]] void no_sandbox(std::string_view what, int cause) {
  throw Error(Error::Kind::unsupported,
              fmt::format("no sandbox on this machine, and programs of models are not run without one: {}: {}{}", what,
                          std::strerror(cause), namespace_hint()));
}

constexpr uid_t kInnerId = 1000;
/// Ids that systemd keeps for services without a user of their own: nobody's files belong to them.
constexpr uid_t kFirstOuterId = 61184, kOuterIds = 4336;

/// One box: the first process of the new namespaces, its pipes, and the watch over it.
class Box {
 public:
  Box(SandboxPlan plan, const SandboxLimits& limits, const std::function<bool()>& cancelled)
      : plan_(std::move(plan)), limits_(limits), cancelled_(cancelled) {}
  ~Box() { bury(); }
  Box(const Box&) = delete;

  SandboxResult run() {
    start();
    map_ids();
    watch();
    bury();
    drain();
    return verdict();
  }

 private:
  void start() {
    plan_.out = out_.write.get(), plan_.err = err_.write.get(), plan_.go = go_.read.get(), plan_.report = report_.write.get();
    plan_.compiler_out = compiler_out_.write.get(), plan_.compiler_err = compiler_err_.write.get();
    constexpr unsigned long kFlags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | SIGCHLD;
    const long child = ::syscall(SYS_clone, kFlags, nullptr, nullptr, nullptr, nullptr);
    if (child == 0) sandbox_child(plan_);
    if (child < 0) no_sandbox("making user, mount, process, network, IPC and host-name namespaces", errno);
    child_ = static_cast<pid_t>(child);
    for (Pipe* pipe : {&out_, &err_, &compiler_out_, &compiler_err_, &report_}) {
      pipe->write.close();
      ::fcntl(pipe->read.get(), F_SETFL, O_NONBLOCK);
    }
    go_.read.close();
  }

  void write_setting(const char* name, const std::string& text, bool needed) const {
    const Descriptor file(::open(fmt::format("/proc/{}/{}", child_, name).c_str(), O_WRONLY | O_CLOEXEC));
    if (file.get() >= 0 && ::write(file.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size())) return;
    if (needed) no_sandbox(fmt::format("writing \"{}\" to the {} of a new user namespace", text, name), errno);
  }

  /// Root's programs get a user id that owns nothing, others keep their own: both are kInnerId inside, the only id there.
  void map_ids() const {
    const bool root = ::geteuid() == 0;
    const uid_t uid = root ? kFirstOuterId + static_cast<uid_t>(::getpid()) % kOuterIds : ::geteuid();
    const gid_t gid = root ? uid : ::getegid();
    if (!root) write_setting("setgroups", "deny", true);
    write_setting("uid_map", fmt::format("{} {} 1", kInnerId, uid), true);
    write_setting("gid_map", fmt::format("{} {} 1", kInnerId, gid), true);
    write_setting("oom_score_adj", "1000", false);  // the first to go when the machine runs out of memory
    if (::write(go_.write.get(), "!", 1) != 1) throw Error(Error::Kind::internal, "sandbox: its first process is gone");
  }

  void watch() {
    constexpr int kPollMs = 5;
    deadline_ = Clock::now() + std::chrono::seconds(30);  // for the set-up
    for (bool open = true; open;) {
      pollfd waits[] = {{report_.read.get(), POLLIN, 0}, {out_.read.get(), POLLIN, 0}, {err_.read.get(), POLLIN, 0},
                        {compiler_out_.read.get(), POLLIN, 0}, {compiler_err_.read.get(), POLLIN, 0}};
      ::poll(waits, std::size(waits), kPollMs);
      take_outputs();
      open = take_reports();
      if (!open) return;
      if (Clock::now() > deadline_) return stop(SandboxResult::End::timed_out);
      if (cancelled_ && cancelled_()) return stop(SandboxResult::End::cancelled);
      const size_t used = running() ? memory_in_use() : 0;
      result_.peak_bytes = std::max(result_.peak_bytes, used);
      if (used > limits_.memory_bytes) return stop(SandboxResult::End::out_of_memory);
    }
  }

  void stop(SandboxResult::End why) {
    result_.end = why;
    stopped_ = true;
  }

  /// False when the first process has ended: nobody else holds the pipe.
  bool take_reports() {
    for (;;) {
      SandboxReport report;
      const ssize_t count = ::read(report_.read.get(), &report, sizeof report);
      if (count == 0) return false;
      if (count != sizeof report) return true;
      if (report.kind == SandboxReport::Kind::failed) failure_ = report;
      if (report.kind == SandboxReport::Kind::ended) ended_ = report;
      if (report.kind == SandboxReport::Kind::started) begin(report.step);
    }
  }

  void begin(int step) {
    step_ = step;
    const bool last = step + 1 == static_cast<int>(plan_.steps.size());
    begun_ = Clock::now();
    deadline_ = begun_ + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(last ? limits_.run_s : limits_.compile_s));
  }

  void take_outputs() {
    take(out_.read, result_.out, result_.truncated);
    take(err_.read, result_.err, result_.truncated);
    take(compiler_out_.read, compiler_.out, compiler_.truncated);
    take(compiler_err_.read, compiler_.err, compiler_.truncated);
  }
  void take(const Descriptor& pipe, std::string& text, bool& truncated) const {
    std::array<char, 65536> buffer;
    for (int round = 0; round < 64; ++round) {  // a program that writes without end must not hold up the watch
      const ssize_t count = ::read(pipe.get(), buffer.data(), buffer.size());
      if (count <= 0) return;
      const size_t kept = std::min(static_cast<size_t>(count), limits_.output_bytes - std::min(limits_.output_bytes, text.size()));
      text.append(buffer.data(), kept);
      truncated = truncated || kept < static_cast<size_t>(count);
    }
  }
  void drain() {
    take_outputs();
    take_reports();
  }

  /// Ends the first process, and with it, before waitpid returns, every process of its namespace.
  void bury() {
    if (child_ < 0) return;
    ::kill(child_, SIGKILL);
    while (::waitpid(child_, nullptr, 0) < 0 && errno == EINTR) {
    }
    child_ = -1;
  }

  /// Private and shared memory and page tables of the program and its descendants; one that lost its parent is a child of the first process,
  /// whose own memory is a copy of ours and does not count.
  size_t memory_in_use() const {
    constexpr size_t kMost = 8192;
    size_t kilobytes = 0;
    std::vector<pid_t> processes{child_};
    for (size_t i = 0; i < processes.size() && processes.size() < kMost; ++i) {
      const std::string folder = fmt::format("/proc/{}", processes[i]);
      if (i > 0) kilobytes += kilobytes_of(folder);
      std::error_code error;
      for (fs::directory_iterator thread(folder + "/task", error), end; !error && thread != end; thread.increment(error)) {
        std::ifstream children(thread->path() / "children");
        for (pid_t child = 0; children >> child;) processes.push_back(child);
      }
    }
    return kilobytes * 1024;
  }
  static size_t kilobytes_of(const std::string& process) {
    size_t sum = 0;
    std::ifstream status(process + "/status");
    for (std::string line; std::getline(status, line);) {
      if (line.starts_with("RssAnon:") || line.starts_with("RssShmem:") || line.starts_with("VmPTE:"))
        sum += std::strtoull(line.c_str() + line.find(':') + 1, nullptr, 10);
    }
    return sum;
  }
  bool running() const { return begun_ != Clock::time_point{} && (!ended_ || ended_->step < step_); }

  SandboxResult verdict() {
    if (failure_) {
      const auto& [kind, stage, step, value] = *failure_;
      if (stage != SandboxStage::exec) no_sandbox(name_of(stage), value);
      throw Error(Error::Kind::internal, fmt::format("sandbox: cannot start {}: {}", plan_.steps[static_cast<size_t>(step)].words[0],
                                                     std::strerror(value)));
    }
    result_.seconds = begun_ == Clock::time_point{} ? 0 : std::chrono::duration<double>(Clock::now() - begun_).count();
    const auto steps = static_cast<int>(plan_.steps.size());
    result_.compiled = step_ + 1 >= steps;
    if (!result_.compiled) result_.out = compiler_.out, result_.err = compiler_.err, result_.truncated = compiler_.truncated;
    if (stopped_) return std::move(result_);
    if (!ended_ || ended_->step != step_) {
      if (steps == 0) return std::move(result_);
      result_.end = SandboxResult::End::signalled, result_.code = SIGKILL;  // the system ended the whole box
    } else if (WIFSIGNALED(ended_->value)) {
      result_.end = SandboxResult::End::signalled, result_.code = WTERMSIG(ended_->value);
    } else {
      result_.code = WEXITSTATUS(ended_->value);
    }
    return std::move(result_);
  }

  SandboxPlan plan_;
  const SandboxLimits& limits_;
  const std::function<bool()>& cancelled_;
  Pipe out_, err_, compiler_out_, compiler_err_, go_, report_;
  pid_t child_ = -1;
  SandboxResult result_, compiler_;
  std::optional<SandboxReport> failure_, ended_;
  int step_ = 0;
  bool stopped_ = false;
  Clock::time_point deadline_, begun_{};
};

void require_children_lists() {
  if (::access("/proc/thread-self/children", R_OK) != 0)
    no_sandbox("adding up the memory of all processes (/proc/<pid>/task/<tid>/children, CONFIG_PROC_CHILDREN)", errno);
}

SandboxPlan make_plan(std::vector<std::vector<std::string>> commands, const SandboxLimits& limits, bool socket_pairs = false) {
  constexpr size_t kCompilerDisk = size_t{512} << 20;
  SandboxPlan plan;
  plan.places = places();
  plan.filter = sandbox_filter(socket_pairs);
  if (plan.filter.empty()) no_sandbox("choosing system calls for this processor architecture", ENOTSUP);
  plan.memory_bytes = limits.memory_bytes, plan.processes = limits.processes;
  plan.disk_bytes = commands.size() > 1 ? std::max(limits.disk_bytes, kCompilerDisk) : limits.disk_bytes;
  plan.root_options = "size=1m,nr_inodes=512,mode=0755";
  plan.tmp_options = fmt::format("size={},nr_inodes=16384,mode=0700", plan.disk_bytes);
  plan.uid = kInnerId;
  plan.drops_groups = ::geteuid() == 0;
  plan.environment = {"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/tmp", "TMPDIR=/tmp", "LANG=C.UTF-8", "PYTHONHASHSEED=0",
                      "GOCACHE=/tmp/go-cache", "GOPATH=/tmp/go:/usr/share/gocode", "GO111MODULE=off", "GOTOOLCHAIN=local", "GOMAXPROCS=2"};
  if (!commands.empty())  // a Java runtime looks for its libraries beside /proc/self/exe, which is not there
    plan.environment.push_back("LD_LIBRARY_PATH=" + (fs::path(commands[0][0]).parent_path().parent_path() / "lib").string());
  for (std::string& entry : plan.environment) plan.envp.push_back(entry.data());
  plan.envp.push_back(nullptr);
  plan.steps.resize(commands.size());
  for (size_t i = 0; i < commands.size(); ++i) {
    SandboxStep& step = plan.steps[i];
    step.words = std::move(commands[i]);
    for (std::string& word : step.words) step.argv.push_back(word.data());
    step.argv.push_back(nullptr);
    step.cpu_s = static_cast<rlim_t>(std::ceil(4 * (i + 1 == commands.size() ? limits.run_s : limits.compile_s)));
  }
  return plan;
}

}  // namespace

std::string_view name_of(Language language) {
  switch (language) {
    case Language::python: return "python";
    case Language::cpp: return "cpp";
    case Language::java: return "java";
    case Language::javascript: return "javascript";
    case Language::go: return "go";
  }
  return "";
}

Language language_named(std::string_view name) {
  for (const Language language : {Language::python, Language::cpp, Language::java, Language::javascript, Language::go})
    if (name == name_of(language)) return language;
  if (name == "js") return Language::javascript;
  throw Error(Error::Kind::bad_input, fmt::format("language is \"{}\", wanted python, cpp, java, javascript (js) or go", name));
}

std::string sandbox_obstacle() {
  try {
    require_children_lists();
    const SandboxLimits limits;
    const std::function<bool()> never;
    SandboxPlan plan = make_plan({}, limits);
    plan.file_name = "program";
    Box(std::move(plan), limits, never).run();
    return "";
  } catch (const Error& e) { return e.what(); }
}

std::string language_obstacle(Language language) {
  try {
    commands_of(language, "");
    return "";
  } catch (const Error& e) { return e.what(); }
}

SandboxResult run_sandboxed(Language language, std::string_view program, const SandboxLimits& limits,
                            const std::function<bool()>& cancelled) {
  if (program.size() > limits.disk_bytes / 2) {
    throw Error(Error::Kind::bad_input, fmt::format("a program of {} bytes is more than half of the {} bytes of disk that it may use",
                                                    program.size(), limits.disk_bytes));
  }
  require_children_lists();
  SandboxPlan plan = make_plan(commands_of(language, program), limits, language == Language::java);
  plan.file_name = language == Language::go && is_go_test(program) ? "main_test.go" : tool_of(language).file_name;
  plan.text = program;
  return Box(std::move(plan), limits, cancelled).run();
}

}  // namespace conclave
