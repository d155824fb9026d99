"""System calls that Python has no function for, through the C library; a failed one is an ``OSError`` that names it."""

import ctypes
import os

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
NAMESPACES = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP

MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 0x1000, 0x4000, 0x40000, 2
RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8  # the same numbers for mount() and mount_setattr()
AT_FDCWD, AT_RECURSIVE = -100, 0x8000

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 22, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 36, 38, 47, 4
_CAPABILITY_VERSION_3 = 0x20080522

# Numbers of calls that older C libraries do not wrap; those above 423 are the same on every architecture.
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
MOUNT_SETATTR = 442

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _checked(result: int, name: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def prctl(option: int, first: int = 0, second: object = 0) -> None:
    """``prctl(2)``; the second argument may be a pointer."""
    passed = ctypes.c_ulong(second) if isinstance(second, int) else second
    _checked(_libc.prctl(option, ctypes.c_ulong(first), passed, ctypes.c_ulong(0), ctypes.c_ulong(0)), "prctl")


def unshare(flags: int) -> None:
    """``unshare(2)``: new namespaces for this process (and, for PIDs, for its children)."""
    _checked(_libc.unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    """``mount(2)``."""
    texts = [text.encode() for text in (source, target, kind, options)]
    _checked(_libc.mount(*texts[:3], ctypes.c_ulong(flags), texts[3]), f"mount {target}")


def restrict_mounts(path: str, attributes: int, recursive: bool = True) -> None:
    """``mount_setattr(2)``: add attributes such as ``RDONLY`` to a mount and those below it; needs Linux 5.12."""
    wanted = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    how = AT_RECURSIVE if recursive else 0
    result = _libc.syscall(
        ctypes.c_long(MOUNT_SETATTR), ctypes.c_long(AT_FDCWD), path.encode(), ctypes.c_long(how),
        ctypes.byref(wanted), ctypes.c_size_t(ctypes.sizeof(wanted)),
    )  # fmt: skip
    _checked(result, "mount_setattr")


def pivot_root(new: str, old: str) -> None:
    """``pivot_root(2)``: make ``new`` the root; what was the root appears at ``old``."""
    number = PIVOT_ROOT[os.uname().machine]
    _checked(_libc.syscall(ctypes.c_long(number), new.encode(), old.encode()), "pivot_root")


def unmount(path: str) -> None:
    """``umount2(2)``, lazily."""
    _checked(_libc.umount2(path.encode(), MNT_DETACH), f"umount {path}")


def set_host_name(name: str) -> None:
    """``sethostname(2)``."""
    _checked(_libc.sethostname(name.encode(), ctypes.c_size_t(len(name))), "sethostname")


def drop_bounding_set() -> None:
    """Give up every capability for good, also for programs that would bring their own."""
    last = 63
    for capability in range(last + 1):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:
            break  # beyond the last one that this kernel knows
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)


def drop_capabilities() -> None:
    """``capset(2)``: no effective, permitted or inheritable capability is left."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _checked(_libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")


def preload(library: str) -> None:
    """Load a shared library now, because later it cannot be found any more; none of that name is fine."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return
