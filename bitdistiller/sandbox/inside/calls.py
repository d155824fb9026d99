"""Which system calls the sandbox forbids: a seccomp filter, on top of namespaces and missing privileges.

Namespaces leave two things open that this closes. Some resources belong to no namespace (key rings, virtual-machine
sockets, anonymous memory files that no size limit of the private file system counts), and a large kernel has bugs that
need rare calls to be reached. So calls that a Python program without privileges does not need fail with EPERM. A call
newer than this list fails with ENOSYS, upon which libraries fall back to an older one; so does ``clone3``, whose flags
a filter cannot see. ``execve`` is among the forbidden: a sandbox contains no program but the interpreter it began in.

The numbers are those of the kernel's own tables (``arch/x86/entry/syscalls/syscall_64.tbl`` and
``include/uapi/asm-generic/unistd.h``) for the two architectures that are supported.
"""

import ctypes
import errno
import os
import socket

from . import kernel

# fmt: off
_NEW = {  # the same number everywhere
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "pidfd_getfd": 438,
    "process_madvise": 440, "mount_setattr": 442, "quotactl_fd": 443, "memfd_secret": 447, "process_mrelease": 448,
}
_FORBIDDEN = {
    "x86_64": _NEW | {
        "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "execve": 59, "execveat": 322,
        "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308,
        "add_key": 248, "request_key": 249, "keyctl": 250, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323,
        "memfd_create": 319, "shmget": 29, "msgget": 68, "semget": 64, "mq_open": 240, "name_to_handle_at": 303,
        "open_by_handle_at": 304, "init_module": 175, "delete_module": 176, "finit_module": 313, "kexec_load": 246,
        "kexec_file_load": 320, "reboot": 169, "swapon": 167, "swapoff": 168, "acct": 163, "quotactl": 179,
        "syslog": 103, "settimeofday": 164, "clock_settime": 227, "adjtimex": 159, "clock_adjtime": 305,
        "sethostname": 170, "setdomainname": 171, "vhangup": 153, "inotify_init": 253, "inotify_init1": 294,
        "fanotify_init": 300, "iopl": 172, "ioperm": 173, "modify_ldt": 154, "personality": 135,
    },
    "aarch64": _NEW | {
        "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272, "execve": 221, "execveat": 281,
        "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "unshare": 97, "setns": 268,
        "add_key": 217, "request_key": 218, "keyctl": 219, "bpf": 280, "perf_event_open": 241, "userfaultfd": 282,
        "memfd_create": 279, "shmget": 194, "msgget": 186, "semget": 190, "mq_open": 180, "name_to_handle_at": 264,
        "open_by_handle_at": 265, "init_module": 105, "delete_module": 106, "finit_module": 273, "kexec_load": 104,
        "kexec_file_load": 294, "reboot": 142, "swapon": 224, "swapoff": 225, "acct": 89, "quotactl": 60,
        "syslog": 116, "settimeofday": 170, "clock_settime": 112, "adjtimex": 171, "clock_adjtime": 266,
        "sethostname": 161, "setdomainname": 162, "vhangup": 58, "inotify_init1": 26, "fanotify_init": 262,
        "personality": 92,
    },
}
_BY_FIRST_ARGUMENT = {
    "x86_64": {"clone": 56, "socket": 41, "socketpair": 53, "prlimit64": 302},
    "aarch64": {"clone": 220, "socket": 198, "socketpair": 199, "prlimit64": 261},
}
# fmt: on
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE3, _FIRST_UNKNOWN = 435, 451  # x86-64's 32-bit variant counts from 0x40000000 and so is unknown, too

_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # byte offsets into struct seccomp_data, little-endian
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_MODE_FILTER = 2


class _Instruction(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("k", ctypes.c_uint32)]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction))]


def supported() -> bool:
    """Whether this architecture's numbers are known."""
    return os.uname().machine in _FORBIDDEN


def forbidden() -> list[str]:
    """Names of the calls that always fail."""
    return sorted(_FORBIDDEN[os.uname().machine])


def forbid() -> None:
    """Install the filter on this process and all it will ever start; there is no way back."""
    code = _filter(os.uname().machine)
    instructions = (_Instruction * len(code))(*code)
    program = _Program(len(code), instructions)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.prctl(kernel.PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program))


def _filter(machine: str) -> list[tuple[int, int, int, int]]:
    """The filter as (code, jump if true, jump if false, operand); a jump skips that many instructions."""
    special = _BY_FIRST_ARGUMENT[machine]
    namespaces = kernel.NAMESPACES & ~0xFF  # the lowest byte of clone's flags is a signal
    fail, missing = (_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)
    allow = (_RETURN, 0, 0, _ALLOW)
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE), (_IF_EQUAL, 1, 0, _AUDIT_ARCH[machine]), (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER), (_IF_AT_LEAST, 0, 1, _FIRST_UNKNOWN), missing, (_IF_EQUAL, 0, 1, _CLONE3), missing,
    ]  # fmt: skip
    for number in _FORBIDDEN[machine].values():
        code += [(_IF_EQUAL, 0, 1, number), fail]
    argument = (_LOAD, 0, 0, _FIRST_ARGUMENT)
    code += [(_IF_EQUAL, 0, 4, special["clone"]), argument, (_IF_ANY_BIT, 0, 1, namespaces), fail, allow]
    for name, only in [("socket", socket.AF_UNIX), ("socketpair", socket.AF_UNIX), ("prlimit64", 0)]:
        code += [(_IF_EQUAL, 0, 4, special[name]), argument, (_IF_EQUAL, 1, 0, only), fail, allow]
    return [*code, allow]
