"""A filter of system calls that allows by list: what a Python program needs, and nothing that leaves its process.

It allows no socket but a local pair, no call that names another process, no memory that is not mapped, no file without
a name, no change of modes, owners and times, and no namespace, mount, key, tracer or further filter. The kernel checks
numbers and arguments in a BPF program, which no process can take off again and every child inherits.
https://docs.kernel.org/userspace-api/seccomp_filter.html
"""

import ctypes
import os
import platform
import struct
from errno import EPERM

# System calls by name, with their numbers on x86_64 and aarch64 ("-": not there). Whatever their arguments:
_ALLOWED = """
read 0 63, write 1 64, close 3 57, lseek 8 62, pread64 17 67, pwrite64 18 68, readv 19 65, writev 20 66, preadv 295 69,
pwritev 296 70, sendfile 40 71, dup 32 23, dup2 33 -, dup3 292 24, pipe 22 -, pipe2 293 59, flock 73 32, fsync 74 82,
fdatasync 75 83, ftruncate 77 46, fadvise64 221 223, close_range 436 436,
select 23 -, pselect6 270 72, poll 7 -, ppoll 271 73, epoll_create 213 -, epoll_create1 291 20, epoll_ctl 233 21,
epoll_wait 232 -, epoll_pwait 281 22, epoll_pwait2 441 441, eventfd 284 -, eventfd2 290 19,
stat 4 -, fstat 5 80, lstat 6 -, newfstatat 262 79, statx 332 291, statfs 137 43, fstatfs 138 44, access 21 -,
faccessat 269 48, faccessat2 439 439, getdents64 217 61, getcwd 79 17, chdir 80 49, fchdir 81 50, umask 95 166,
rename 82 -, renameat 264 38, renameat2 316 276, mkdir 83 -, mkdirat 258 34, rmdir 84 -, unlink 87 -, unlinkat 263 35,
link 86 -, linkat 265 37, symlink 88 -, symlinkat 266 36, readlink 89 -, readlinkat 267 78,
mmap 9 222, mprotect 10 226, munmap 11 215, brk 12 214, mremap 25 216, madvise 28 233, msync 26 227,
rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, rt_sigpending 127 136, rt_sigtimedwait 128 137,
rt_sigsuspend 130 133, sigaltstack 131 132, restart_syscall 219 128, pause 34 -, alarm 37 -, getitimer 36 102,
setitimer 38 103, nanosleep 35 101, clock_nanosleep 230 115, clock_gettime 228 113, clock_getres 229 114,
gettimeofday 96 169, time 201 -, times 100 153, getrusage 98 165, sysinfo 99 179, uname 63 160, getrandom 318 278,
futex 202 98, membarrier 324 283, getcpu 309 168, sched_yield 24 124, set_tid_address 218 96, set_robust_list 273 99,
rseq 334 293, arch_prctl 158 -, getrlimit 97 163, setrlimit 160 164, getpid 39 172, gettid 186 178, getppid 110 173,
getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177, getgroups 115 158, getresuid 118 148,
getresgid 120 150, getpgrp 111 -, exit 60 93, exit_group 231 94,
recvfrom 45 207, shutdown 48 210, getsockname 51 204, getpeername 52 205, getsockopt 55 209
"""
_OF_PROCESSES = "execve 59 221, setsid 112 157, wait4 61 260, waitid 247 95"
# The watcher of the program answers these.
GATED = {"clone": (56, 220), "fork": (57, None), "vfork": (58, None), "kill": (62, 129), "tgkill": (234, 131)}
# Without these, glibc falls back to older calls, whose arguments can be checked.
_NOT_THERE = "clone3 435 435, openat2 437 437"

# Allowed with arguments. A condition is (index, mask, value): the argument's 32 low bits under the mask are the value.
_ANY = 0xFFFFFFFF
_PATH_ONLY, _NAMELESS, _TRUNCATE, _ACCESS = 0o10000000, 0o20000000, 0o1000, 3
# Landlock before version 3 lets `O_RDONLY | O_TRUNC` empty any file; it has never looked at access mode 3.
_OPENING = (
    (_PATH_ONLY | _NAMELESS | _ACCESS | _TRUNCATE, os.O_RDONLY),
    (_PATH_ONLY | _NAMELESS | _ACCESS, os.O_WRONLY),
    (_PATH_ONLY | _NAMELESS | _ACCESS, os.O_RDWR),
)
# F_DUPFD to F_SETLKW, F_DUPFD_CLOEXEC, F_GETPIPE_SZ, F_OFD_*: no owner, lease, signal, larger pipe, watch of a folder.
_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1032, 36, 37, 38)
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_PRCTL = (3, 15, 16, 23, 0x53564D41)  # PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME, PR_CAPBSET_READ, PR_SET_VMA
# What `fork` and a new thread ask for. Left out: every namespace, CLONE_PARENT, CLONE_PTRACE.
_CLONE = 0xFF | 0x100 | 0x200 | 0x400 | 0x800 | 0x4000 | 0x10000 | 0x40000 | 0x80000 | 0x100000 | 0x200000 | 0x1000000
_LAST_KNOWN = 450  # newer calls are "not there", so that libraries fall back


# Numbers on both machines, and the conditions.
_Rule = tuple[tuple[int | None, int | None], tuple[tuple[int, int, int], ...]]


def _conditional(own_pid: int) -> list[_Rule]:
    rules: list[_Rule] = [((257, 56), ((2, mask, flags),)) for mask, flags in _OPENING]
    rules += [((2, None), ((1, mask, flags),)) for mask, flags in _OPENING]
    rules += [((72, 25), ((1, _ANY, command),)) for command in _FCNTL]
    rules += [((16, 29), ((1, _ANY, request),)) for request in _IOCTL]
    rules += [((157, 167), ((0, _ANY, option),)) for option in _PRCTL]
    # A connected pair of local streams; without an address to send to. SOCK_CLOEXEC and SOCK_NONBLOCK are flags.
    rules += [((53, 199), ((0, _ANY, 1), (1, 0xF, 1)))]
    rules += [((44, 206), ((4, _ANY, 0), (4 + _HIGH, _ANY, 0)))]
    # About itself: getpgid, getsid, sched_getaffinity and prlimit64.
    own = (0, own_pid)
    rules += [(n, ((0, _ANY, pid),)) for n in ((121, 155), (124, 156), (204, 123), (302, 261)) for pid in own]
    rules += [((140, 141), ((0, _ANY, 0), (1, _ANY, 0)))]  # getpriority(PRIO_PROCESS, 0)
    return rules


_HIGH = 0x100  # added to an argument's index: its high word
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_ALLOW, _KILL, _NOTIFY, _ERRNO = 0x7FFF0000, 0x80000000, 0x7FC00000, 0x00050000
_ENOSYS = 38
# The kernel's name of the machine, and the column of its numbers.
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}


def unsupported() -> str | None:
    """Why no filter can be made for this machine; None if one can."""
    machine = platform.machine()
    return None if machine in _MACHINES else f"no filter of system calls is written for the processor {machine!r}"


def allow_by_list(processes: bool) -> None:
    """Refuse this thread, for good, every system call that is not in the list. Refused calls give `EPERM`.

    `processes` allows new processes and threads, programs, and signals. Call `notify_gated` before.
    """
    arch, column = _MACHINES[platform.machine()]
    program = [*_check_machine(arch)]
    lists = _ALLOWED + ("," + _OF_PROCESSES if processes else "")
    for number in _numbers(lists, column):
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    for number in _numbers(_NOT_THERE, column):
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | _ENOSYS)]
    rules = _conditional(os.getpid())
    if processes:
        rules += [(n, ((0, _ANY ^ _CLONE, 0),) if name == "clone" else ()) for name, n in GATED.items()]
    for numbers, conditions in rules:
        if (conditional := numbers[column]) is not None:
            program += _rule(conditional, conditions)
    program += [(_LOAD, 0, 0, 0), (_AT_LEAST, 0, 1, _LAST_KNOWN + 1), (_RETURN, 0, 0, _ERRNO | _ENOSYS)]
    program += [(_RETURN, 0, 0, _ERRNO | EPERM)]
    _install(program, 0)


def notify_gated() -> int:
    """Stop this thread and its children at each call of `GATED` until the returned descriptor's holder answers."""
    arch, column = _MACHINES[platform.machine()]
    program = [*_check_machine(arch)]
    for numbers in GATED.values():
        if (number := numbers[column]) is not None:
            program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _NOTIFY)]
    return _install([*program, (_RETURN, 0, 0, _ALLOW)], 1 << 3)  # SECCOMP_FILTER_FLAG_NEW_LISTENER


def gated_name(number: int) -> str:
    """Which call of `GATED` has this number."""
    column = _MACHINES[platform.machine()][1]
    return next(name for name, numbers in GATED.items() if numbers[column] == number)


def _numbers(names: str, column: int) -> list[int]:
    found = [entry.split()[1 + column] for entry in names.replace("\n", " ").split(",")]
    return [int(number) for number in found if number != "-"]


def _check_machine(arch: int) -> list[tuple[int, int, int, int]]:
    # Offsets in `struct seccomp_data`: the number 0, the machine 4, the arguments from 16 on. Bit 30 marks x32.
    check = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL)]
    return [*check, (_LOAD, 0, 0, 0), (_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL)]


def _rule(number: int, conditions: tuple[tuple[int, int, int], ...]) -> list[tuple[int, int, int, int]]:
    """Allow a call if its arguments meet the conditions; else go on with the next rule."""
    checks = [
        (16 + 8 * (index % _HIGH) + (4 if index >= _HIGH else 0), mask, value) for index, mask, value in conditions
    ]
    length = 1 + 3 * len(checks)
    program = [(_LOAD, 0, 0, 0), (_EQUAL, 0, length, number)]
    for i, (offset, mask, value) in enumerate(checks):
        program += [(_LOAD, 0, 0, offset), (_AND, 0, 0, mask), (_EQUAL, 0, length - 3 * (i + 1), value)]
    return [*program, (_RETURN, 0, 0, _ALLOW)]


def _install(program: list[tuple[int, int, int, int]], flags: int) -> int:
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    number = (317, 277)[_MACHINES[platform.machine()][1]]
    # PR_SET_NO_NEW_PRIVS; SECCOMP_SET_MODE_FILTER
    if libc.prctl(38, 1, 0, 0, 0) or (result := libc.syscall(number, 1, flags, head)) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"seccomp: {os.strerror(error)}")
    return result
