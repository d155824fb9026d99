"""Moving into the sandbox: namespaces, a root of its own, no identity, no privileges.

The order matters. Namespaces come first, because in its own user namespace a process may mount and nobody else notices.
Then a root file system is built in memory: the standard library, three devices and a private folder for temporary
files; the interpreter already runs, so neither it nor any shared library has to be in there, and everything is mounted
``noexec``. The old root is detached, which leaves no way back: not a directory that one could climb out of, as after
``chroot``, but nothing. Then identity and capabilities go, and last the system calls that undo such things.

A user other than root becomes nobody inside and stays themselves outside. Root becomes nobody on both sides, since the
kernel exempts the real root from the limit on processes, whatever namespace it is in.
"""

import os
import socket
import sysconfig
from pathlib import Path

from . import calls, kernel

NOBODY = 65534
TEMPORARY = "/tmp"
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_NEW, _OLD = f"{TEMPORARY}/new", f"{TEMPORARY}/old"
_FILES = 512  # in the private folder, folders included


def map_identity(pid: int) -> None:
    """Say who the users of a new user namespace are; called from outside, by whoever started the process."""
    own_user, own_group = os.geteuid(), os.getegid()
    for name, own in [("uid_map", own_user), ("gid_map", own_group)]:
        lines = f"0 0 1\n{NOBODY} {NOBODY} 1\n" if own_user == 0 else f"{NOBODY} {own} 1\n"
        if own_user != 0 and name == "gid_map":
            Path(f"/proc/{pid}/setgroups").write_text("deny")
        Path(f"/proc/{pid}/{name}").write_text(lines)


def enter(ask_for_map, root: bool, disk_bytes: int) -> None:
    """Move this process into the sandbox; ``OSError`` names the call that this machine does not allow.

    ``ask_for_map`` returns once ``map_identity`` has been called on this process. Children are born into a new PID
    namespace. Capabilities remain, for ``give_up_privileges``.
    """
    kernel.unshare(kernel.NAMESPACES)
    ask_for_map()
    kernel.set_host_name("sandbox")
    _change_root(disk_bytes)
    if root:
        os.setgroups([])
        kernel.drop_bounding_set()
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    else:
        kernel.drop_bounding_set()
    give_up_privileges()


def give_up_privileges() -> None:
    """No capabilities, none to be gained, no inspection by others, no dangerous system calls."""
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    calls.forbid()


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel end this process when its parent ends; exits at once if ``parent`` is gone already."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, 9)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def library_folders() -> list[str]:
    """Folders of the standard library."""
    paths = sysconfig.get_paths()
    return list(dict.fromkeys(os.path.realpath(paths[name]) for name in ("stdlib", "platstdlib")))


def _change_root(disk_bytes: int) -> None:
    kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", TEMPORARY, "tmpfs", kernel.NOSUID | kernel.NODEV, "size=1m,mode=755")
    os.mkdir(_NEW)
    os.mkdir(_OLD)
    kernel.mount(_NEW, _NEW, "", kernel.MS_BIND)
    kernel.pivot_root(TEMPORARY, _OLD)
    new, old = (path.removeprefix(TEMPORARY) for path in (_NEW, _OLD))
    for folder in library_folders():
        _show(old + folder, new + folder)
        _hide_packages(Path(new + folder))
    for device in _DEVICES:
        _show(old + device, new + device, kernel.NOEXEC | kernel.NOSUID)
    os.makedirs(new + TEMPORARY)
    options = f"size={disk_bytes},nr_inodes={_FILES},mode=1777"
    kernel.mount("tmpfs", new + TEMPORARY, "tmpfs", kernel.NOSUID | kernel.NODEV | kernel.NOEXEC, options)
    os.mkdir(new + old)
    kernel.pivot_root(new, new + old)
    os.chdir("/")
    kernel.unmount(old)
    os.rmdir(old)
    kernel.restrict_mounts("/", kernel.RDONLY | kernel.NOSUID | kernel.NODEV | kernel.NOEXEC, recursive=False)
    os.chdir(TEMPORARY)


def _show(source: str, target: str, attributes: int = kernel.NOEXEC | kernel.NOSUID | kernel.NODEV) -> None:
    """Make a folder or file of the old root visible in the new one, read-only."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        Path(target).touch()
    kernel.mount(source, target, "", kernel.MS_BIND | kernel.MS_REC)
    kernel.restrict_mounts(target, kernel.RDONLY | attributes)


def _hide_packages(library: Path) -> None:
    """Cover installed packages: what is theirs, or the user's own under development, is nobody's business."""
    for name in ("site-packages", "dist-packages"):
        if (library / name).is_dir():
            flags = kernel.RDONLY | kernel.NOSUID | kernel.NODEV | kernel.NOEXEC
            kernel.mount("tmpfs", str(library / name), "tmpfs", flags, "size=4k")


def facts(root: bool) -> list[str]:
    """What holds for a process in here, one line each; ``root`` says who started it."""
    outside = "outside as well" if root else "outside who you are"
    return [
        "namespaces of its own: user, mount, network, PID, IPC, UTS, cgroup",
        f"identity: nobody ({outside}); no capabilities, no new privileges",
        f"host name: {socket.gethostname()}; network: none; /proc: none",
        f"files: {', '.join(library_folders())} and {', '.join(_DEVICES)} to read, {TEMPORARY} (private) to write",
        f"system calls that fail: {len(calls.forbidden())} by name, and all newer ones",
    ]
