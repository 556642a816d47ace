#include "eval/sandbox_filter.h"

#include <asm/ioctls.h>
#include <linux/audit.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace conclave {
namespace {

#if defined(__x86_64__)
constexpr uint32_t kArchitecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
constexpr uint32_t kArchitecture = AUDIT_ARCH_AARCH64;
#else
constexpr uint32_t kArchitecture = 0;
#endif

/// Memory, files of the private root, time, signals and processes of the own namespace. Absent on purpose: sockets, mounts,
/// namespaces, tracing, ids and capabilities, keys, kernel modules, bpf, performance events, io_uring, userfaultfd, System V and POSIX IPC,
/// memory files, file handles, device nodes.
constexpr long kAllowed[] = {
    SYS_read, SYS_write, SYS_readv, SYS_writev, SYS_pread64, SYS_pwrite64, SYS_preadv, SYS_pwritev, SYS_openat, SYS_close, SYS_close_range,
    SYS_fstat, SYS_newfstatat, SYS_statx, SYS_faccessat, SYS_faccessat2, SYS_lseek, SYS_pipe2, SYS_dup, SYS_dup3, SYS_fcntl, SYS_flock,
    SYS_fsync, SYS_fdatasync, SYS_ftruncate, SYS_truncate, SYS_fallocate, SYS_getdents64, SYS_getcwd, SYS_chdir, SYS_fchdir, SYS_renameat,
    SYS_renameat2, SYS_mkdirat, SYS_linkat, SYS_unlinkat, SYS_symlinkat, SYS_readlinkat, SYS_fchmod, SYS_fchmodat, SYS_umask, SYS_utimensat,
    SYS_sendfile, SYS_copy_file_range, SYS_fadvise64, SYS_statfs, SYS_fstatfs,
    SYS_mmap, SYS_mprotect, SYS_munmap, SYS_mremap, SYS_madvise, SYS_brk, SYS_msync, SYS_mincore,
    SYS_pselect6, SYS_ppoll, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait, SYS_eventfd2, SYS_timerfd_create, SYS_timerfd_settime,
    SYS_timerfd_gettime,
    SYS_execve, SYS_exit, SYS_exit_group, SYS_wait4, SYS_waitid, SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_rt_sigsuspend,
    SYS_rt_sigpending, SYS_rt_sigtimedwait, SYS_rt_sigqueueinfo, SYS_sigaltstack, SYS_kill, SYS_tkill, SYS_tgkill, SYS_getitimer,
    SYS_setitimer, SYS_timer_create, SYS_timer_settime, SYS_timer_gettime, SYS_timer_getoverrun, SYS_timer_delete, SYS_nanosleep,
    SYS_clock_gettime, SYS_clock_getres, SYS_clock_nanosleep, SYS_gettimeofday, SYS_times, SYS_getrusage,
    SYS_getpid, SYS_getppid, SYS_gettid, SYS_getuid, SYS_geteuid, SYS_getgid, SYS_getegid, SYS_getresuid, SYS_getresgid, SYS_getgroups,
    SYS_getpgid, SYS_setpgid, SYS_getsid, SYS_setsid, SYS_getpriority, SYS_sched_yield, SYS_sched_getaffinity, SYS_sched_getparam,
    SYS_sched_getscheduler, SYS_sched_get_priority_max, SYS_sched_get_priority_min,
    SYS_futex, SYS_set_robust_list, SYS_get_robust_list, SYS_set_tid_address, SYS_membarrier, SYS_getrandom, SYS_uname, SYS_sysinfo,
    SYS_getcpu, SYS_getrlimit, SYS_setrlimit, SYS_restart_syscall,
#ifdef SYS_rseq
    SYS_rseq,
#endif
#if defined(__x86_64__)  // older calls that later architectures do without
    SYS_open, SYS_creat, SYS_stat, SYS_lstat, SYS_access, SYS_pipe, SYS_dup2, SYS_getdents, SYS_rename, SYS_mkdir, SYS_rmdir, SYS_link,
    SYS_unlink, SYS_symlink, SYS_readlink, SYS_chmod, SYS_utime, SYS_utimes, SYS_select, SYS_poll, SYS_epoll_create, SYS_epoll_wait,
    SYS_eventfd, SYS_fork, SYS_vfork, SYS_pause, SYS_alarm, SYS_time, SYS_getpgrp, SYS_arch_prctl,
#endif
};

class Program {
 public:
  void load(size_t offset) { add(BPF_LD | BPF_W | BPF_ABS, static_cast<uint32_t>(offset)); }
  /// The low half of an argument (both architectures are little-endian): all that the kernel looks at in the calls below.
  void load_argument(int index) { load(offsetof(seccomp_data, args) + static_cast<size_t>(index) * 8); }
  /// `test` of the loaded value: how many instructions to step over when it holds, and when not.
  void jump(int test, uint32_t value, size_t if_true, size_t if_false) {
    code.push_back(BPF_JUMP(static_cast<uint16_t>(BPF_JMP | test | BPF_K), value, static_cast<uint8_t>(if_true),
                            static_cast<uint8_t>(if_false)));
  }
  void skip_unless(uint32_t value, size_t count) { jump(BPF_JEQ, value, 0, count); }
  void answer(uint32_t action) { add(BPF_RET | BPF_K, action); }

  /// The call `number` is allowed when its argument is one of `values`, else fails with `error`. Expects the number loaded; leaves it so.
  void allow_values(long number, int argument, std::initializer_list<uint32_t> values, int error) {
    skip_unless(static_cast<uint32_t>(number), 2 * values.size() + 2);
    load_argument(argument);
    for (const uint32_t value : values) {
      skip_unless(value, 1);
      answer(SECCOMP_RET_ALLOW);
    }
    answer(SECCOMP_RET_ERRNO | static_cast<uint32_t>(error));
  }

  std::vector<sock_filter> code;

 private:
  void add(int operation, uint32_t value) { code.push_back(BPF_STMT(static_cast<uint16_t>(operation), value)); }
};

void add_conditional_calls(Program& p) {
  p.allow_values(SYS_ioctl, 1, {TCGETS, FIONREAD, FIONBIO, FIOCLEX, FIONCLEX, TIOCGWINSZ}, ENOTTY);
  p.allow_values(SYS_prctl, 0, {PR_SET_NAME, PR_GET_NAME, PR_SET_PDEATHSIG, PR_GET_DUMPABLE, PR_GET_NO_NEW_PRIVS, PR_SET_NO_NEW_PRIVS},
                 EINVAL);
  p.allow_values(SYS_prlimit64, 0, {0}, EPERM);
  // clone3 passes its flags in memory, where a filter cannot look: the C library falls back to clone.
  p.skip_unless(SYS_clone, 4);
  p.load_argument(0);
  p.jump(BPF_JSET, CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET, 1, 0);
  p.answer(SECCOMP_RET_ALLOW);
  p.answer(SECCOMP_RET_ERRNO | EPERM);
}

}  // namespace

std::vector<sock_filter> sandbox_filter(bool socket_pairs) {
  if (kArchitecture == 0) return {};
  Program p;
  p.load(offsetof(seccomp_data, arch));
  p.jump(BPF_JEQ, kArchitecture, 1, 0);
  p.answer(SECCOMP_RET_KILL_PROCESS);
  p.load(offsetof(seccomp_data, nr));
#if defined(__x86_64__)
  p.jump(BPF_JGE, 0x40000000, 0, 1);  // x32: other numbers for the same calls
  p.answer(SECCOMP_RET_KILL_PROCESS);
#endif
  add_conditional_calls(p);
  if (socket_pairs) p.allow_values(SYS_socketpair, 0, {AF_UNIX}, EPERM);
  for (const long call : kAllowed) {
    p.skip_unless(static_cast<uint32_t>(call), 1);
    p.answer(SECCOMP_RET_ALLOW);
  }
  p.answer(SECCOMP_RET_ERRNO | ENOSYS);
  return p.code;
}

}  // namespace conclave
