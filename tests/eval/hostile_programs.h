#pragma once
// Programs that try to leave the sandbox, to harm what is outside or to outlast it. Before a program runs, @SECRET@ becomes a file outside,
// @FOLDER@ its folder, @VICTIM@ a process outside, @PORT@, @PORT6@, @UDP@, @UNIX@ and @ABSTRACT@ what listens outside, @MARK@ a word that is
// found nowhere else. kPrelude stands before each Python text.
#include <ostream>

#include "eval/sandbox.h"

namespace conclave::test {

struct HostileProgram {
  const char* name;
  const char* text;
  enum Ends { finishes, killed_for_time, killed_for_memory, any } ends = finishes;
  bool works_outside = false;  ///< harmless to the machine, and noticed when it runs without a sandbox
  Language language = Language::python;
};
inline void PrintTo(const HostileProgram& program, std::ostream* out) { *out << program.name; }

inline constexpr const char* kPrelude = R"(
import os, sys, time, signal, socket, ctypes, mmap, stat, subprocess, threading, struct, resource, errno
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    if libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
def c(name, *arguments):
    if getattr(libc, name)(*arguments) < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
def attempt(what, action):
    try: value = action()
    except (OSError, MemoryError, ValueError, RuntimeError, subprocess.SubprocessError) as e: print('refused', what, e)
    else: print('ESCAPED', what, value)
def each(what, action, values):
    for v in values: attempt(f'{what} {v}', lambda: action(v))
)";

inline constexpr HostileProgram kHostilePrograms[] = {
    // Files.
    {"ReadsThePasswordFile", R"(each('read', lambda f: open(f).read(), ['/etc/shadow', '/etc/passwd', '/etc/gshadow', '/etc/ssh']))",
     HostileProgram::finishes, true},
    {"ListsHomes", R"(each('list', os.listdir, ['/root', '/home', '/var', '/opt', '/srv', '/mnt', '/run', '/sys', '/proc', '/boot']))",
     HostileProgram::finishes, true},
    {"ReadsAFile", R"(attempt('read', lambda: open('@SECRET@').read()))", HostileProgram::finishes, true},
    {"ReadsThroughASymbolicLink", R"(
os.symlink('@SECRET@', 'link'); attempt('file', lambda: open('link').read())
os.symlink('@FOLDER@', 'folder'); attempt('folder', lambda: os.listdir('folder')))",
     HostileProgram::finishes, true},
    {"ReadsThroughParents", R"(attempt('read', lambda: open('../' * 40 + '@SECRET@').read()))", HostileProgram::finishes, true},
    {"ReadsThroughTheRootsOfProcesses", R"(
each('read', lambda p: open(f'/proc/{p}/root/@SECRET@').read(), [1, 'self', os.getppid(), @VICTIM@])
each('list', lambda p: os.listdir(f'/proc/{p}/cwd'), [1, 'self', os.getppid(), @VICTIM@]))",
     HostileProgram::finishes, true},
    {"ReadsOtherProcesses", R"(
each('read', lambda f: open(f'/proc/@VICTIM@/{f}', 'rb').read(10), ['cmdline', 'environ', 'maps', 'status', 'mem'])
each('read', lambda f: open(f'/proc/1/{f}', 'rb').read(10), ['environ', 'maps', 'mem']))",
     HostileProgram::finishes, true},
    {"WritesAFile", R"(attempt('write', lambda: open('@FOLDER@/made', 'w').write('x')))", HostileProgram::finishes, true},
    {"WritesThroughASymbolicLink", R"(os.symlink('@FOLDER@/made', 'link'); attempt('write', lambda: open('link', 'w').write('x')))",
     HostileProgram::finishes, true},
    {"DeletesFiles", R"(attempt('unlink', lambda: os.unlink('@SECRET@')))", HostileProgram::finishes, true},
    {"RenamesAndLinksFiles", R"(
attempt('link', lambda: os.link('@SECRET@', '@FOLDER@/made')); attempt('in', lambda: os.link('@SECRET@', 'made'))
attempt('rename', lambda: os.rename('@SECRET@', '@FOLDER@/moved')))",
     HostileProgram::finishes, true},
    {"ChangesModesOfFiles", R"(attempt('chmod', lambda: os.chmod('@SECRET@', 0o777)); attempt('utime', lambda: os.utime('@SECRET@', (1, 1))))",
     HostileProgram::finishes, true},
    {"ChangesTheSystem", R"(
attempt('python', lambda: open(sys.executable, 'r+b')); attempt('make', lambda: open('/usr/@MARK@', 'w'))
attempt('library', lambda: open('/lib/@MARK@', 'w')); attempt('unlink', lambda: os.unlink('/usr/bin/env'))
attempt('mkdir', lambda: os.mkdir('/usr/lib/@MARK@')); attempt('chmod', lambda: os.chmod('/usr/bin', 0o777)))"},
    {"ChangesItsOwnRoot", R"(
each('make', lambda f: open(f, 'w'), ['/made', '/etc/passwd', '/dev/made', '/bin/made'])
attempt('unlink', lambda: os.unlink('/dev/null')); attempt('chmod', lambda: os.chmod('/', 0o777)); attempt('rmdir', lambda: os.rmdir('/etc')))"},
    {"MakesDevices", R"(
for name, mode, device in (('disk', stat.S_IFBLK, (8, 0)), ('vdisk', stat.S_IFBLK, (254, 0)), ('mem', stat.S_IFCHR, (1, 1))):
    attempt(name, lambda: os.mknod('/tmp/' + name, mode | 0o666, os.makedev(*device)))
    attempt(name, lambda: open('/tmp/' + name, 'rb').read(1)))"},
    {"OpensDevices", R"(
each('open', lambda d: open('/dev/' + d, 'rb'), ['sda', 'vda', 'nvme0n1', 'mem', 'kmem', 'kmsg', 'port', 'tty', 'ptmx', 'fuse', 'kvm', 'loop0', 'net/tun', 'shm/x']))"},
    {"OpensByHandle", R"(
handle = struct.pack('IiI', 8, 1, 2) + bytes(16)
attempt('open', lambda: call(304, 0, handle, 0)); attempt('name', lambda: call(303, -100, b'/', ctypes.create_string_buffer(256), ctypes.create_string_buffer(8), 0)))"},
    {"UsesInheritedDescriptors", R"(
for fd in range(3, 1024):
    try: print('ESCAPED', os.fstat(fd), os.pread(fd, 100, 0))
    except OSError: pass)",
     HostileProgram::finishes, true},
    {"ForgesReports", R"(
for fd in range(3, 256):
    for size in (1, 4, 12, 16, 20):
        try: os.write(fd, b'\2' + bytes(size - 1)); print('ESCAPED', fd)
        except OSError: pass
print('still here'); sys.exit(7))", HostileProgram::any},
    {"ClosesItsDescriptors", R"(os.closerange(0, 1024); os.chdir('/')
while True: time.sleep(0.1))", HostileProgram::killed_for_time},
    {"OpensItsDescriptorsAgain", R"(each('open', lambda f: open(f, 'wb'), ['/proc/self/fd/3', '/proc/self/fd/4', '/dev/fd/3', '/proc/1/fd/3', '/proc/1/fd/4']))"},
    // Mounts and namespaces.
    {"Mounts", R"(
for kind in (b'tmpfs', b'proc', b'sysfs', b'devtmpfs', b'overlay', b'cgroup2'):
    attempt(kind, lambda: c('mount', b'x', b'/tmp', kind, 0, None))
attempt('bind', lambda: c('mount', b'/usr', b'/tmp', None, 4096, None)))"},
    {"Unmounts", R"(each('umount', lambda p: c('umount2', p, 2), [b'/usr', b'/tmp', b'/dev/null', b'/']))"},
    {"MakesTheSystemWritable", R"(
attempt('remount', lambda: c('mount', None, b'/usr', None, 32 | 4096, None)); attempt('root', lambda: c('mount', None, b'/', None, 32 | 4096, None))
attempt('attributes', lambda: call(442, -100, b'/usr', 0x8000, struct.pack('QQQQ', 0, 1, 0, 0), 32)))"},
    {"MakesNamespaces", R"(each('unshare', lambda f: c('unshare', f), [0x10000000, 0x10020000, 0x00020000, 0x20000000, 0x40000000, 0x04000000, 0x08000000, 0x02000000, 0x80]))"},
    {"ClonesIntoNamespaces", R"(
def clone(flags):
    pid = libc.syscall(ctypes.c_long(56), ctypes.c_long(flags | 17), 0, 0, 0, 0)
    if pid < 0: raise OSError(ctypes.get_errno(), 'clone')
    if pid == 0: os._exit(0)
each('clone', clone, [0x10000000, 0x10020000, 0x30000000, 0x50000000])
attempt('clone3', lambda: call(435, struct.pack('QQQQQQQQ', 0x10000000, 0, 0, 0, 17, 0, 0, 0), 64)))"},
    {"EntersNamespaces", R"(
each('open', lambda n: open(f'/proc/1/ns/{n}'), ['mnt', 'pid', 'net', 'user'])
attempt('pidfd', lambda: call(434, 1, 0)); each('setns', lambda fd: c('setns', fd, 0), range(0, 8)))"},
    {"LeavesAChroot", R"(
os.mkdir('x'); attempt('chroot', lambda: os.chroot('x'))
for _ in range(200): os.chdir('..')
attempt('out', lambda: os.chroot('.')); attempt('secret', lambda: open('.@SECRET@').read()); print(sorted(os.listdir('.'))))"},
    {"PivotsTheRoot", R"(os.mkdir('x'); attempt('pivot', lambda: call(155, b'/tmp', b'/tmp/x')); attempt('same', lambda: call(155, b'.', b'.')))"},
    {"UsesTheNewMountCalls", R"(
attempt('open_tree', lambda: call(428, -100, b'/', 1)); attempt('move_mount', lambda: call(429, -100, b'/usr', -100, b'/tmp', 0))
attempt('fsopen', lambda: call(430, b'tmpfs', 0)); attempt('fspick', lambda: call(433, -100, b'/', 0)))"},
    {"WalksOutByDescriptors", R"(
for fd in range(3, 512):
    try: os.fchdir(fd); print('ESCAPED', os.listdir('.'))
    except OSError: pass)"},
    // Rights.
    {"BecomesRoot", R"(
attempt('uid', lambda: os.setuid(0)); attempt('gid', lambda: os.setgid(0)); attempt('euid', lambda: os.seteuid(0))
attempt('resuid', lambda: os.setresuid(0, 0, 0)); attempt('groups', lambda: os.setgroups([0]))
if 0 in (os.getuid(), os.geteuid(), os.getgid()): print('ESCAPED'))"},
    {"RunsSetuidPrograms", R"(
for words in (['su', '-c', 'id'], ['mount', '-t', 'tmpfs', 'x', '/tmp'], ['passwd', '-S'], ['newgrp'], ['sudo', '-n', 'id']):
    try: done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=5)
    except OSError as e: print('refused', words, e); continue
    print(words, done.returncode, done.stderr)
    if done.returncode == 0 or 'uid=0' in done.stdout: print('ESCAPED'))"},
    {"MakesASetuidProgram", R"(
import shutil
shutil.copyfile('/usr/bin/id', 'id'); os.chmod('id', 0o6755); out = subprocess.run(['./id'], capture_output=True, text=True).stdout
print(out); 'uid=0' in out and print('ESCAPED'); attempt('chown', lambda: os.chown('id', 0, 0)))"},
    {"TakesCapabilities", R"(
header, data = struct.pack('Ii', 0x20080522, 0), struct.pack('IIIIII', *[0xffffffff] * 6)
attempt('capset', lambda: call(126, header, data)); attempt('ambient', lambda: c('prctl', 47, 2, 21, 0, 0))
attempt('securebits', lambda: c('prctl', 28, 0, 0, 0, 0)); attempt('keepcaps', lambda: c('prctl', 8, 1, 0, 0, 0)))"},
    {"SwitchesTheFilterOff", R"(
attempt('prctl', lambda: c('prctl', 22, 0, 0, 0, 0)); attempt('notify', lambda: call(317, 1, 8, struct.pack('HxxxxxxQ', 1, 0)))
attempt('dumpable', lambda: c('prctl', 4, 1, 0, 0, 0)); attempt('mm', lambda: c('prctl', 35, 1, 0, 0, 0)); attempt('personality', lambda: call(135, 0x0040000)))"},
    {"RaisesItsLimits", R"(
for what in (resource.RLIMIT_NPROC, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_CPU, resource.RLIMIT_CORE):
    attempt(what, lambda: resource.setrlimit(what, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)))
attempt('other', lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, (1, 1))))"},
    {"RaisesItsPriority", R"(
attempt('nice', lambda: c('setpriority', 0, 0, -20)); attempt('fifo', lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50)))
attempt('affinity', lambda: os.sched_setaffinity(1, [0])); attempt('io', lambda: call(251, 1, 0, 1 << 13)))"},
    {"UsesKeys", R"(
attempt('add', lambda: call(248, b'user', b'@MARK@', b'x', 1, -4)); attempt('request', lambda: call(249, b'user', b'@MARK@', None, -3))
attempt('join', lambda: call(250, 1, None)); attempt('read', lambda: call(250, 11, -3, ctypes.create_string_buffer(64), 64)))"},
    {"UsesIoUring", R"(attempt('setup', lambda: call(425, 8, ctypes.create_string_buffer(256))); attempt('enter', lambda: call(426, 3, 1, 1, 0, None, 0)); attempt('register', lambda: call(427, 3, 0, None, 0)))"},
    {"UsesBpf", R"(attempt('map', lambda: call(321, 0, struct.pack('IIII', 2, 4, 4, 1) + bytes(112), 128)); attempt('perf', lambda: call(298, bytes(128), 0, -1, -1, 0)))"},
    {"UsesUserfaultfd", R"(attempt('fd', lambda: call(323, 0)); attempt('user', lambda: call(323, 1)); attempt('fanotify', lambda: call(300, 0, 0)); attempt('inotify', lambda: call(294, 0)))"},
    {"ReachesForTheKernel", R"(
for name, number in (('module', 175), ('fmodule', 313), ('unload', 176), ('kexec', 246), ('kexecf', 320), ('swapon', 167), ('acct', 163), ('iopl', 172), ('ioperm', 173), ('quota', 179), ('vhangup', 153)):
    attempt(name, lambda: call(number, 1, 1, 1, 0))
attempt('log', lambda: call(103, 3, ctypes.create_string_buffer(64), 64)); attempt('reboot', lambda: call(169, 1, 2, 3, 0)))"},
    {"SetsTheClockAndTheName", R"(
attempt('clock', lambda: time.clock_settime(time.CLOCK_REALTIME, time.time() + 3600)); attempt('day', lambda: call(164, struct.pack('qq', 1, 1), None))
attempt('name', lambda: socket.sethostname('@MARK@')); attempt('domain', lambda: call(171, b'x', 1)))"},
    {"WritesKernelSettings", R"(
each('write', lambda f: open(f, 'w').write('@MARK@'), ['/proc/sys/kernel/hostname', '/proc/sys/kernel/core_pattern', '/proc/sysrq-trigger', '/proc/self/oom_score_adj', '/proc/self/uid_map',
  '/sys/kernel/uevent_helper', '/sys/fs/cgroup/release_agent', '/sys/fs/cgroup/memory/notify_on_release']))"},
    {"ReadsTheKernel", R"(each('read', lambda f: open(f, 'rb').read(1), ['/proc/kallsyms', '/proc/kcore', '/proc/version', '/sys/kernel/notes', '/proc/self/mountinfo', '/proc/self/status']))",
     HostileProgram::finishes, true},
    {"UsesOtherCallNumbers", R"(
if os.uname().machine == 'x86_64':
    libc.syscall(ctypes.c_long(0x40000000 | 39)); print('ESCAPED x32'))", HostileProgram::any},
    {"PushesKeysIntoTheTerminal", R"(
import fcntl
for fd in (0, 1, 2): attempt(fd, lambda: fcntl.ioctl(fd, 0x5412, b'x')); attempt(fd, lambda: fcntl.ioctl(fd, 0x540e, 0))
attempt('tty', lambda: open('/dev/tty')); attempt('console', lambda: open('/dev/console')))"},
    // Other processes.
    {"KillsAProcess", R"(attempt('kill', lambda: os.kill(@VICTIM@, signal.SIGKILL)))", HostileProgram::finishes, true},
    {"StopsAProcess", R"(attempt('stop', lambda: os.kill(@VICTIM@, signal.SIGSTOP)))", HostileProgram::finishes, true},
    {"KillsItsParents", R"(
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGSTOP, signal.SIGKILL, signal.SIGSEGV, signal.SIGCHLD):
    for pid in (os.getppid(), 1, 0):
        try: pid and os.kill(pid, number)
        except OSError as e: print('refused', e)
print('the parent is still', os.getppid()); os.getppid() != 1 and print('ESCAPED'))"},
    {"KillsEverything", R"(
for pid in range(1, 70000):
    if pid != os.getpid():
        try: os.kill(pid, signal.SIGKILL)
        except OSError: pass
if os.fork() == 0: os.kill(-1, signal.SIGKILL)
time.sleep(0.1); os.kill(-1, signal.SIGKILL))", HostileProgram::any},
    {"TracesItsParent", R"(
for pid in (1, os.getppid(), @VICTIM@): attempt(pid, lambda: call(101, 16, pid, 0, 0)); attempt(pid, lambda: call(101, 0x4206, pid, 0, 0))
attempt('me', lambda: call(101, 0, 0, 0, 0)))"},
    {"ReadsAndWritesOtherMemory", R"(
buffer = ctypes.create_string_buffer(64)
local, remote = struct.pack('QQ', ctypes.addressof(buffer), 64), struct.pack('QQ', id(buffer), 64)
for pid in (1, os.getpid(), @VICTIM@): attempt(pid, lambda: call(310, pid, local, 1, remote, 1, 0)); attempt(pid, lambda: call(311, pid, local, 1, remote, 1, 0)))"},
    {"StealsDescriptorsOfProcesses", R"(
attempt('open', lambda: call(434, 1, 0)); each('get', lambda fd: call(438, fd, 0, 0), range(0, 8)); attempt('signal', lambda: call(424, 0, 9, None, 0))
attempt('kcmp', lambda: call(312, 1, os.getpid(), 0, 0, 0)))"},
    {"QueuesSignals", R"(
attempt('queue', lambda: call(129, @VICTIM@, 9, struct.pack('iii', 9, 0, -1) + bytes(116))); attempt('thread', lambda: call(234, @VICTIM@, @VICTIM@, 9)))"},
    {"DiesOfASignal", R"(os.kill(os.getpid(), signal.SIGSEGV))", HostileProgram::any},
    {"LeavesADaemon", R"(
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for fd in range(3): os.close(fd)
        os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(60)', '@MARK@'])
    os._exit(0)
os.wait(); time.sleep(0.2))",
     HostileProgram::finishes, true},
    {"LeavesADeafDaemon", R"(
if os.fork() == 0:
    for number in range(1, 65):
        try: signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError): pass
    os.execv(sys.executable, [sys.executable, '-c', 'while True: pass', '@MARK@'])
time.sleep(0.2))",
     HostileProgram::finishes, true},
    {"LeavesAWriter", R"(
if os.fork() == 0:
    while True: os.write(1, b'still here\n'); time.sleep(0.01)
os._exit(0))"},
    {"ForksWithoutEnd", R"(
while True:
    try: os.fork()
    except OSError: pass)", HostileProgram::killed_for_time},
    {"ForksAndLeavesWithoutEnd", R"(
while True:
    try:
        if os.fork(): os._exit(0)
    except OSError: pass)", HostileProgram::finishes},
    {"StartsThreadsWithoutEnd", R"(
while True:
    try: threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
    except (RuntimeError, MemoryError): pass)", HostileProgram::killed_for_time},
    {"StartsProgramsWithoutEnd", R"(
running = []
while True:
    try: running.append(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', '@MARK@']))
    except OSError: pass)", HostileProgram::any},
    {"LeavesZombies", R"(
made = 0
while made < 1000:
    try:
        if os.fork() == 0: os._exit(0)
        made += 1
    except OSError: break
print(made, 'zombies'); made < 1000 or print('ESCAPED'))"},
    {"StopsItself", R"(os.kill(os.getpid(), signal.SIGSTOP))", HostileProgram::killed_for_time},
    {"Sleeps", R"(
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
time.sleep(1000))", HostileProgram::killed_for_time},
    {"WorksWithoutEnd", R"(
while True: pass)", HostileProgram::killed_for_time},
    // Memory, disk, output.
    {"TakesAllMemory", R"(
attempt('at once', lambda: bytearray(1 << 40)); parts = []
try:
    while True: parts.append(bytearray(1 << 20))
except MemoryError: print('refused after', len(parts), 'MiB'))", HostileProgram::any},
    {"TakesMemoryInManyProcesses", R"(
for _ in range(16):
    if os.fork() == 0:
        held = bytearray(100 << 20)
        time.sleep(100)
time.sleep(100))", HostileProgram::killed_for_memory},
    {"TakesSharedMemory", R"(
held = []
while True:
    m = mmap.mmap(-1, 64 << 20); m.write(bytes(64 << 20)); held.append(m))", HostileProgram::killed_for_memory},
    {"TakesPageTables", R"(
size = 1 << 42
libc.mmap.restype = ctypes.c_void_p; libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
base = libc.mmap(None, size, 1, 0x4022, -1, 0)
for at in range(0, size, 1 << 21): ctypes.string_at(base + at, 1))", HostileProgram::killed_for_memory},
    {"TakesMemoryFiles", R"(attempt('memfd', lambda: os.memfd_create('x')); attempt('secret', lambda: call(447, 0)); attempt('lock', lambda: c('mlockall', 3)))"},
    {"TakesTheStack", R"(
sys.setrecursionlimit(1 << 30); threading.stack_size(1 << 29) if False else None
def down(n): return down(n + 1) + 1
down(0))", HostileProgram::any},
    {"FillsTheDisk", R"(
total = 0
try:
    for i in range(1 << 20):
        with open(f'f{i}', 'wb', buffering=0) as f:
            for _ in range(8): total += f.write(bytes(1 << 20))
except OSError as e: print('refused after', total, e)
total > (40 << 20) and print('ESCAPED', total))"},
    {"MakesFilesWithoutEnd", R"(
made = 0
try:
    while made < 100000: open(f'n{made}', 'w').close(); made += 1
except OSError as e: print('refused after', made, e)
made < 100000 or print('ESCAPED'))"},
    {"MakesAHugeFile", R"(
signal.signal(signal.SIGXFSZ, signal.SIG_IGN); f = open('huge', 'wb')
attempt('truncate', lambda: f.truncate(1 << 50)); attempt('allocate', lambda: os.posix_fallocate(f.fileno(), 0, 1 << 40)))"},
    {"NestsFolders", R"(
depth = 0
try:
    while depth < 100000: os.mkdir('d'); os.chdir('d'); depth += 1
except OSError as e: print('refused after', depth, e)
depth < 100000 or print('ESCAPED'))"},
    {"WritesWithoutEnd", R"(
while True: os.write(1, b'x' * 65536))", HostileProgram::killed_for_time},
    {"ComplainsWithoutEnd", R"(
while True: os.write(2, b'\x1b]0;x\x07\0' * 8192))", HostileProgram::killed_for_time},
    // Network and other processes' means.
    {"ConnectsToLoopback", R"(
def connect(family, address):
    s = socket.socket(family, socket.SOCK_STREAM); s.settimeout(2); s.connect(address); s.send(b'@MARK@')
attempt('tcp', lambda: connect(socket.AF_INET, ('127.0.0.1', @PORT@))))", HostileProgram::finishes, true},
    {"ConnectsToLoopbackOfVersion6", R"(
s = None
def connect():
    s = socket.socket(socket.AF_INET6, socket.SOCK_STREAM); s.settimeout(2); s.connect(('::1', @PORT6@))
attempt('tcp', connect))"},
    {"SendsDatagrams", R"(
def send(): socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'@MARK@', ('127.0.0.1', @UDP@))
attempt('udp', send))", HostileProgram::finishes, true},
    {"ConnectsToAUnixSocket", R"(
def connect(): s = socket.socket(socket.AF_UNIX); s.connect('@UNIX@'); s.send(b'@MARK@')
attempt('unix', connect))", HostileProgram::finishes, true},
    {"ConnectsToAnAbstractSocket", R"(
def connect(): s = socket.socket(socket.AF_UNIX); s.connect('\0@ABSTRACT@'); s.send(b'@MARK@')
attempt('abstract', connect))", HostileProgram::finishes, true},
    {"OpensOtherSockets", R"(
for family, kind, protocol in ((2, 3, 1), (17, 3, 768), (16, 3, 0), (16, 3, 15), (40, 1, 0), (38, 5, 0), (44, 3, 0), (2, 2, 0), (10, 1, 0), (1, 2, 0)):
    attempt((family, kind), lambda: socket.socket(family, kind, protocol)))"},
    {"ServesOthers", R"(
def serve(): s = socket.socket(); s.bind(('0.0.0.0', 0)); s.listen()
attempt('tcp', serve); attempt('pair', socket.socketpair))"},
    {"AsksForNames", R"(
attempt('dns', lambda: socket.getaddrinfo('localhost.@MARK@.invalid', 80))
import urllib.request
attempt('http', lambda: urllib.request.urlopen('http://127.0.0.1:@PORT@/@MARK@', timeout=2)))"},
    {"LeavesSystemVMemory", R"(
attempt('shm', lambda: call(29, 0x1c0ffee, 4096, 0o1666)); attempt('sem', lambda: call(64, 0x1c0ffee, 1, 0o1666)); attempt('msg', lambda: call(68, 0x1c0ffee, 0o1666)))"},
    {"LeavesPosixMemory", R"(
attempt('mq', lambda: call(240, b'@MARK@', 0o102, 0o666, None)); attempt('shm', lambda: open('/dev/shm/@MARK@', 'w')); attempt('mqueue', lambda: os.listdir('/dev/mqueue')))"},
    // Other languages.
    {"IncludesAFile", "#include \"@SECRET@\"\n#include \"/etc/shadow\"\nint main() {}\n", HostileProgram::any, false, Language::cpp},
    {"AssemblesAFile", "__asm__(\".section .rodata\\nsecret: .incbin \\\"@SECRET@\\\"\\n.byte 0\\n.text\");\nextern \"C\" const char secret[] asm(\"secret\");\n#include <cstdio>\nint main() { puts(secret); }\n",
     HostileProgram::any, false, Language::cpp},
    {"CompilesWithoutEnd", "template <class T> struct A { A<T*> next; static constexpr int v = A<T*>::v + A<A<T>>::v; };\nint main() { return A<int>::v; }\n",
     HostileProgram::any, false, Language::cpp},
    {"WritesAHugeProgram", "char filled[1ul << 31] = {1};\nint main() { return filled[0]; }\n", HostileProgram::any, false, Language::cpp},
#if defined(__x86_64__)
    {"CallsAsA32BitProgram", R"(#include <cstdio>
int main() { long result; __asm__ volatile("int $0x80" : "=a"(result) : "a"(20)); printf("ESCAPED %ld\n", result); })",
     HostileProgram::any, false, Language::cpp},
#endif
    {"UsesEverythingOfNode", R"(
const tries = {read: () => require('fs').readFileSync('@SECRET@', 'utf8'), kill: () => process.kill(@VICTIM@, 9), write: () => require('fs').writeFileSync('@FOLDER@/made', 'x')};
for (const name in tries) { try { console.log('ESCAPED', name, tries[name]()); } catch (e) { console.log('refused', name, e.code); } }
require('net').connect(@PORT@, '127.0.0.1').on('connect', () => console.log('ESCAPED net')).on('error', e => console.log('refused', e.code)); )",
     HostileProgram::any, false, Language::javascript},
    {"UsesEverythingOfJava", R"(import java.nio.file.*;
public class Main { interface Try { Object run() throws Exception; }
  static void attempt(String name, Try t) { try { System.out.println("ESCAPED " + name + t.run()); } catch (Throwable e) { System.out.println("refused " + name + e); } }
  public static void main(String[] a) {
    attempt("read", () -> Files.readString(Path.of("@SECRET@"))); attempt("write", () -> Files.writeString(Path.of("@FOLDER@/made"), "x"));
    attempt("net", () -> new java.net.Socket("127.0.0.1", @PORT@));
    System.exit(0); } })",
     HostileProgram::any, false, Language::java},
};

}  // namespace conclave::test
