#include "eval/sandbox_child.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/mount.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace conclave {
namespace {

constexpr int kGo = 3, kReport = 4, kFirstFree = 5;

void say(const SandboxReport& report) {
  ssize_t ignored = ::write(kReport, &report, sizeof report);
  (void)ignored;
}

[[noreturn]] void fail(SandboxStage stage, int step = 0) {
  say({.kind = SandboxReport::Kind::failed, .stage = stage, .step = step, .value = errno});
  ::_exit(1);
}

void require(bool done, SandboxStage stage, int step = 0) {
  if (!done) fail(stage, step);
}

/// Standard input is empty, outputs go to the pipes, everything else that the parent had open is closed: other threads of it may have been
/// at work on anything.
void take_descriptors(const SandboxPlan& plan) {
  constexpr auto stage = SandboxStage::start;
  constexpr int kAbove = 64;
  const int null = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  const int from[] = {null, plan.out, plan.err, plan.go, plan.report};
  int lifted[std::size(from)];
  for (size_t i = 0; i < std::size(from); ++i) lifted[i] = ::fcntl(from[i], F_DUPFD_CLOEXEC, kAbove);
  for (int i = 0; i < kFirstFree; ++i) {
    if (lifted[i] < 0 || ::dup3(lifted[i], i, i >= kGo ? O_CLOEXEC : 0) < 0) fail(stage);
  }
  require(::syscall(SYS_close_range, kFirstFree, ~0u, 0) == 0, stage);
}

void take_identity(const SandboxPlan& plan) {
  constexpr auto stage = SandboxStage::identity;
  char mapped;
  if (::read(kGo, &mapped, 1) != 1) ::_exit(1);  // the parent is gone
  if (plan.drops_groups) require(::syscall(SYS_setgroups, 0, nullptr) == 0, stage);
  require(::syscall(SYS_setresgid, plan.uid, plan.uid, plan.uid) == 0, stage);
  require(::syscall(SYS_setresuid, plan.uid, plan.uid, plan.uid) == 0, stage);
  require(::prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) == 0, stage);
  pollfd parent{kGo, 0, 0};
  if (::poll(&parent, 1, 0) != 0) ::_exit(1);  // hung up: it died before the line above
  require(::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0, stage);
  require(::setsid() >= 0, stage);
  ::umask(022);
}

bool protect(const char* target, uint64_t flags, unsigned recursive) {
  mount_attr attributes{};
  attributes.attr_set = flags;
  return ::syscall(SYS_mount_setattr, AT_FDCWD, target, recursive, &attributes, sizeof attributes) == 0;
}

void place(const SandboxPlace& what) {
  constexpr auto stage = SandboxStage::place;
  const char* target = what.target.c_str();
  if (!what.link.empty()) return require(::symlink(what.link.c_str(), target) == 0, stage);
  if (what.folder) require(::mkdir(target, 0755) == 0 || errno == EEXIST, stage);
  if (what.source.empty()) return;
  if (!what.folder) {
    const int file = ::open(target, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
    require(file >= 0, stage);
    ::close(file);
  }
  require(::mount(what.source.c_str(), target, nullptr, MS_BIND | MS_REC, nullptr) == 0, stage);
  const uint64_t flags = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | (what.folder ? MOUNT_ATTR_NODEV : MOUNT_ATTR_NOEXEC);
  require(protect(target, flags, AT_RECURSIVE), stage);
}

/// A root of memory on /tmp with the chosen places in it; then it becomes the root, and the old one is let go.
void change_root(const SandboxPlan& plan) {
  require(::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0, SandboxStage::private_mounts);
  require(::mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, plan.root_options.c_str()) == 0, SandboxStage::root);
  require(::chdir("/tmp") == 0, SandboxStage::root);
  for (const SandboxPlace& what : plan.places) place(what);
  require(::mkdir("tmp", 0700) == 0, SandboxStage::tmp);
  require(::mount("tmpfs", "tmp", "tmpfs", MS_NOSUID | MS_NODEV, plan.tmp_options.c_str()) == 0, SandboxStage::tmp);
  require(::syscall(SYS_pivot_root, ".", ".") == 0, SandboxStage::pivot);
  require(::umount2(".", MNT_DETACH) == 0, SandboxStage::pivot);  // the old root lies on top of the new one
  require(::chdir("/") == 0, SandboxStage::pivot);
  require(protect("/", MOUNT_ATTR_RDONLY, 0), SandboxStage::read_only);
  require(::chdir("/tmp") == 0, SandboxStage::read_only);
}

void write_program(const SandboxPlan& plan) {
  constexpr auto stage = SandboxStage::program;
  const int file = ::open(plan.file_name.c_str(), O_CREAT | O_WRONLY | O_EXCL | O_CLOEXEC, 0600);
  require(file >= 0, stage);
  for (size_t done = 0; done < plan.text.size();) {
    const ssize_t count = ::write(file, plan.text.data() + done, plan.text.size() - done);
    require(count > 0, stage);
    done += static_cast<size_t>(count);
  }
  ::close(file);
}

void drop_capabilities() {
  constexpr auto stage = SandboxStage::capabilities;
  for (int capability = 0; ::prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; ++capability)
    require(::prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0, stage);
  require(::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) == 0, stage);
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  const __user_cap_data_struct none[2] = {};
  require(::syscall(SYS_capset, &header, none) == 0, stage);
}

void give_up_rights(const SandboxPlan& plan) {
  drop_capabilities();
  require(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, SandboxStage::privileges);
  const sock_fprog program{static_cast<unsigned short>(plan.filter.size()), const_cast<sock_filter*>(plan.filter.data())};
  require(::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) == 0, SandboxStage::filter);
}

void set_limits(const SandboxPlan& plan, const SandboxStep& step) {
  const struct {
    decltype(RLIMIT_CPU) what;
    rlim_t most;
  } limits[] = {{RLIMIT_CPU, step.cpu_s},        {RLIMIT_DATA, plan.memory_bytes}, {RLIMIT_FSIZE, plan.disk_bytes},
                {RLIMIT_NPROC, static_cast<rlim_t>(plan.processes) + 1},           {RLIMIT_NOFILE, 128},
                {RLIMIT_STACK, rlim_t{64} << 20}, {RLIMIT_CORE, 0},                {RLIMIT_MEMLOCK, 0},
                {RLIMIT_SIGPENDING, 256},         {RLIMIT_MSGQUEUE, 0}};
  for (const auto& [what, most] : limits) {
    rlimit limit{};
    require(::getrlimit(what, &limit) == 0, SandboxStage::limits);
    limit.rlim_max = std::min(limit.rlim_max, most);  // never raised: that would need a privilege
    limit.rlim_cur = what == RLIMIT_STACK ? std::min(limit.rlim_cur, limit.rlim_max) : limit.rlim_max;
    require(::setrlimit(what, &limit) == 0, SandboxStage::limits);
  }
}

[[noreturn]] void become(const SandboxPlan& plan, int index) {
  const SandboxStep& step = plan.steps[static_cast<size_t>(index)];
  ::setsid();
  set_limits(plan, step);
  ::execve(step.argv[0], step.argv.data(), plan.envp.data());
  fail(SandboxStage::exec, index);
}

/// Runs one command to its end; also buries what others leave behind. Its wait status.
int run_step(const SandboxPlan& plan, int index) {
  say({.kind = SandboxReport::Kind::started, .stage = SandboxStage::exec, .step = index, .value = 0});
  const auto child = static_cast<pid_t>(::syscall(SYS_clone, SIGCHLD, nullptr, nullptr, nullptr, nullptr));
  require(child >= 0, SandboxStage::fork, index);
  if (child == 0) become(plan, index);
  for (;;) {
    int status = 0;
    const pid_t ended = ::wait4(-1, &status, 0, nullptr);
    if (ended == child) return status;
    if (ended < 0 && errno != EINTR) fail(SandboxStage::fork, index);
  }
}

void forget_signals() {
  for (int number = 1; number < NSIG; ++number) ::signal(number, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
}

}  // namespace

const char* name_of(SandboxStage stage) {
  switch (stage) {
    case SandboxStage::start: return "taking its descriptors";
    case SandboxStage::identity: return "taking an unprivileged user id";
    case SandboxStage::private_mounts: return "making mounts private";
    case SandboxStage::root: return "mounting a private root of memory (tmpfs) on /tmp";
    case SandboxStage::place: return "showing /usr read-only in the private root (mount, mount_setattr of Linux 5.12)";
    case SandboxStage::tmp: return "mounting a private /tmp of memory (tmpfs)";
    case SandboxStage::pivot: return "changing to the private root (pivot_root)";
    case SandboxStage::read_only: return "making the private root read-only";
    case SandboxStage::host_name: return "setting the host name";
    case SandboxStage::program: return "writing the program into /tmp";
    case SandboxStage::capabilities: return "dropping capabilities";
    case SandboxStage::privileges: return "forbidding new privileges";
    case SandboxStage::filter: return "installing the filter of system calls (seccomp)";
    case SandboxStage::fork: return "starting a process";
    case SandboxStage::limits: return "setting resource limits";
    case SandboxStage::exec: return "starting the program";
  }
  return "";
}

void sandbox_child(const SandboxPlan& plan) {
  forget_signals();
  take_descriptors(plan);
  take_identity(plan);
  change_root(plan);
  require(::sethostname("sandbox", 7) == 0, SandboxStage::host_name);
  write_program(plan);
  give_up_rights(plan);
  for (int i = 0; i < static_cast<int>(plan.steps.size()); ++i) {
    const int status = run_step(plan, i);
    say({.kind = SandboxReport::Kind::ended, .stage = SandboxStage::exec, .step = i, .value = status});
    if (status != 0) break;
  }
  ::_exit(0);
}

}  // namespace conclave
