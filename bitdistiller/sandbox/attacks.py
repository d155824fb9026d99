"""Attacks: small hostile programs and the verdict that each must end in.

In each, ``attack()`` tries something and returns a true value only if it worked, so ``passed`` would mean that the
sandbox does not hold. Several need something of the host to aim at. ``targets`` provides that, plainly reachable for an
ordinary process of this user: a file at home, a variable, an open file, sockets; and says afterwards what was touched.

They are kept as text, so that importing this file, as test collectors do, runs none of them.
"""

import contextlib
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from textwrap import dedent

from bitdistiller.sandbox.outcome import Limits, Outcome, Verdict
from bitdistiller.sandbox.run import run_many

# Small enough that even an attack that got out could not fill this machine.
LIMITS = Limits(seconds=4, cpu_seconds=2, memory_bytes=128 << 20, processes=6, disk_bytes=4 << 20)
VARIABLE = "BITDISTILLER_ATTACK_TARGET"


@dataclass(frozen=True)
class Attack:
    """One hostile program; ``$name`` in its source is a place of the host, see ``targets``."""

    name: str
    verdict: Verdict
    source: str
    tests: str = "assert attack()"


@dataclass
class Targets:
    """What attacks aim at: ``places`` by the name that sources use, and what became of it."""

    places: dict[str, str]
    touched: list[str] = field(default_factory=list)


@contextlib.contextmanager
def targets() -> Iterator[Targets]:
    """Put up the targets; once over, ``touched`` says which of them something has reached."""
    secret = secrets.token_hex(16)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".attack-target-", dir=Path.home())))
        file = folder / "file"
        file.write_text(secret)
        opened = stack.enter_context(file.open("a"))
        os.set_inheritable(opened.fileno(), True)
        os.environ[VARIABLE] = secret
        stack.callback(os.environ.pop, VARIABLE)
        listeners = {}
        for name, family, address in [
            ("port", socket.AF_INET, ("127.0.0.1", 0)),
            ("abstract", socket.AF_UNIX, f"\0attack-target-{secret}"),
            ("unix", socket.AF_UNIX, str(folder / "socket")),
        ]:
            listener = listeners[name] = stack.enter_context(socket.socket(family))
            listener.bind(address)
            listener.listen()
            listener.setblocking(False)
        places = {"file": str(file), "folder": str(folder), "home": str(Path.home()), "pid": str(os.getpid())}
        places |= {"port": str(listeners["port"].getsockname()[1]), "fd": str(opened.fileno())}
        places |= {"abstract": f"attack-target-{secret}", "unix": str(folder / "socket"), "variable": VARIABLE}
        found = Targets(places)
        yield found
        if file.read_text() != secret or {path.name for path in folder.iterdir()} != {"file", "socket"}:
            found.touched.append("files")
        for name, listener in listeners.items():
            with contextlib.suppress(BlockingIOError):
                listener.accept()[0].close()
                found.touched.append(name)


def run_attacks(attacks: list[Attack] | None = None, limits: Limits = LIMITS) -> tuple[list[Outcome], list[str]]:
    """Run attacks, all by default; their outcomes, and the targets that were touched (none, if the sandbox holds)."""
    chosen = ATTACKS if attacks is None else attacks
    with targets() as aims:
        programs = [(Template(dedent(attack.source)).substitute(aims.places), attack.tests) for attack in chosen]
        outcomes = run_many(programs, limits, at_a_time=2, description="attacks")
    return outcomes, aims.touched


_SYSCALL = """
    import ctypes, os
    libc = ctypes.CDLL(None, use_errno=True)
    def call(x86_64, aarch64, *arguments):
        number = dict(x86_64=x86_64, aarch64=aarch64)[os.uname().machine]
        return libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
"""


def _function(body: str) -> str:
    return "def attack():\n" + "".join(f"    {line}\n" for line in dedent(body).strip().splitlines())


def _attack(name: str, verdict: Verdict, body: str, tests: str = "assert attack()", before: str = "") -> Attack:
    """An attack whose function has the given body."""
    return Attack(name, verdict, f"{dedent(before)}\n{_function(body)}", tests)


def _call(name: str, expression: str) -> Attack:
    """An attack by one system call, which must fail."""
    return _attack(name, "failed", f"return {expression} >= 0", before=_SYSCALL)


NETWORK = [
    _attack("network", "error", """
        import socket
        return socket.create_connection(("192.0.2.1", 80), 2)"""),
    _attack("datagram", "error", """
        import socket
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53))"""),
    _attack("name look-up", "error", """
        import socket
        return socket.getaddrinfo("localhost", 80)"""),
    _attack("loopback", "error", """
        import socket
        return socket.create_connection(("127.0.0.1", $port), 2)"""),
    _attack("socket file", "error", """
        import socket
        return socket.socket(socket.AF_UNIX).connect("$unix") is None"""),
    _attack("abstract socket", "error", """
        import socket
        return socket.socket(socket.AF_UNIX).connect("\\0$abstract") is None"""),
    _attack("virtual-machine socket", "error", """
        import socket
        return socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)"""),
    _attack("kernel's netlink", "error", """
        import socket
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)"""),
]  # fmt: skip

FILES = [
    _attack("read at home", "error", """return open("$file").read()"""),
    _attack("list home", "failed", """
        import os
        return os.path.exists("$folder") or os.path.exists(os.path.join("$home", ".bashrc"))"""),
    _attack("read passwords", "error", """return open("/etc/passwd").read()"""),
    _attack("write at home", "error", """return open("$folder/attack-was-here", "w").write("x")"""),
    _attack("append to a file", "error", """return open("$file", "a").write("x")"""),
    _attack("write at the root", "error", """return open("/attack-was-here", "w").write("x")"""),
    _attack("change the library", "error", """
        import os
        return open(os.__file__, "a").write("x")"""),
    _attack("installed packages", "failed", """
        import os
        folders = [os.path.dirname(os.__file__) + "/" + name for name in ("site-packages", "dist-packages")]
        return sum([os.listdir(folder) for folder in folders if os.path.isdir(folder)], [])"""),
    _attack("plant a module", "error", """
        import os
        return open(os.path.join(os.path.dirname(os.__file__), "attack_was_here.py"), "w").write("x")"""),
    _attack("symbolic link", "error", """
        import os
        os.symlink("$file", "link")
        return open("link").read()"""),
    _attack("symbolic link, writing", "error", """
        import os
        os.symlink("$folder", "link")
        return open("link/attack-was-here", "w").write("x")"""),
    _attack("hard link", "error", """
        import os
        os.link(os.__file__, "copy")
        return open("copy", "a").write("x")"""),
    _attack("climb out", "error", """return open("../" * 40 + "$file".lstrip("/")).read()"""),
    _attack("change root", "error", """
        import os
        os.mkdir("new")
        os.chroot("new")
        os.chdir("../" * 40)
        return os.path.exists("$file")"""),
    _attack("device node", "error", """
        import os, stat
        os.mknod("disk", 0o600 | stat.S_IFBLK, os.makedev(8, 0))
        return True"""),
    _attack("terminal", "error", """return open("/dev/tty", "w").write("x")"""),
    _attack("type into a terminal", "error", """
        import fcntl
        return [fcntl.ioctl(number, 0x5412, b"x") for number in range(3)]"""),
    _attack("inherited descriptors", "failed", """
        import os
        def written(number):
            try:
                return os.write(number, b"attack-was-here")
            except OSError:
                return 0
        return any([written(number) for number in range(5, 4096)] + [written($fd) if $fd > 4 else 0])"""),
    _attack("huge file", "error", """return open("huge", "wb").write(bytes(64 << 20))"""),
    _attack("sparse file", "error", """return open("sparse", "wb").truncate(1 << 40)"""),
    _attack("full disk", "error", """
        for number in range(100):
            with open(f"file{number}", "wb") as file:
                file.write(bytes(1 << 20))
        return True"""),
    _attack("flood of files", "error", """
        import tempfile
        return [tempfile.mkdtemp() for _ in range(10_000)]"""),
    _attack("many open files", "error", """return [open("/dev/null") for _ in range(10_000)]"""),
    _attack("run a program", "error", """
        import os
        return os.execv("/bin/sh", ["sh", "-c", "true"])"""),
    _attack("start an interpreter", "error", """
        import subprocess, sys
        return subprocess.run([sys.executable, "-c", "pass"])"""),
    _attack("load a library", "error", """
        import ctypes, glob, os
        return ctypes.CDLL(glob.glob(os.path.dirname(os.__file__) + "/lib-dynload/_test*.so")[0])"""),
]  # fmt: skip

INSPECTION = [
    _attack("list processes", "error", """
        import os
        return os.listdir("/proc")"""),
    _attack("own memory as a file", "error", """return open("/proc/self/mem", "rb").read(1)"""),
    _attack("command line of the parent", "error", """
        import os
        return open(f"/proc/{os.getppid()}/cmdline", "rb").read()"""),
    _attack("environment", "failed", """
        import os
        return "$variable" in os.environ or len(os.environ)"""),
    _attack("arguments", "failed", """
        import sys
        return any(sys.argv)"""),
    _attack("host name", "failed", """
        import socket
        return socket.gethostname() != "sandbox" """),
    _attack("token in live objects", "failed", """
        import gc, re
        seen, queue = set(), [*gc.get_objects(), globals()]
        while queue and len(seen) < 300_000:
            thing = queue.pop()
            if id(thing) in seen:
                continue
            seen.add(id(thing))
            if type(thing) in (str, bytes):
                text = thing if type(thing) is str else thing.decode("latin1")
                if re.fullmatch("[0-9a-f]{32}", text) or ("tok" + "en" in text and "verdict" in text):
                    return text
            elif type(thing) in (list, tuple, dict, set):
                queue += gc.get_referents(thing)"""),
    _attack("token in frames", "failed", """
        import re, sys
        wanted = "[0-9a-f]{32}|" + " ".join(["assert", "attack"])
        frame = sys._getframe()
        while frame:
            for value in [*frame.f_locals.values(), *frame.f_globals.values(), *frame.f_code.co_consts]:
                if isinstance(value, str) and value != wanted and re.search(wanted, value):
                    return value
            frame = frame.f_back"""),
    _attack("tests in raw memory", "failed", """
        import ctypes
        start = id(object()) >> 20 << 20  # the arena in which small objects lie
        needle = b"assert " + b"attack()"
        return needle in ctypes.string_at(start, 1 << 20)"""),
    _attack("tests on standard input", "failed", """
        import sys
        return sys.stdin.read()"""),
    _attack("trace the parent", "failed", """return call(101, 117, 16, os.getppid(), 0, 0) >= 0""", before=_SYSCALL),
    _call("read another's memory", "call(310, 270, os.getppid(), 0, 0, 0, 0, 0)"),
    _call("take another's descriptor", "call(438, 438, call(434, 434, os.getppid(), 0), 0, 0)"),
    _call("watch files", "call(294, 26, 0)"),
]  # fmt: skip

KERNEL = [
    _call("new namespaces", "libc.unshare(0x10000000 | 0x00020000)"),
    _call("child in new namespaces", "call(56, 220, 0x10000000 | 17, 0, 0, 0, 0)"),
    _call("clone3", "call(435, 435, 0, 0)"),
    _call("another's namespace", "libc.setns(0, 0)"),
    _call("mount", 'libc.mount(b"none", b"/tmp", b"tmpfs", 0, 0)'),
    _call("make writable", 'libc.mount(b"none", b"/", b"", 0x1020, 0)'),
    _call("new mount calls", "call(430, 430, 0, 0)"),
    _call("unmount", 'libc.umount2(b"/", 2)'),
    _call("key ring", "call(250, 219, 0, -3, 0, 0, 0)"),
    _call("kernel program", "call(321, 280, 0, 0, 0)"),
    _call("asynchronous calls", "call(425, 425, 8, 0)"),
    _call("page faults", "call(323, 282, 1)"),
    _call("shared memory", "libc.shmget(7, 4096, 0o1600)"),
    _call("restart the machine", "call(169, 142, 0, 0, 0, 0)"),
    _call("another's limits", "call(302, 261, os.getppid(), 0, 0, 0)"),
    _call("gain capabilities", "libc.prctl(47, 2, 21, 0, 0)"),
    _attack("memory file", "error", """
        import os
        return os.memfd_create("attack")"""),
    _attack("shared memory, by name", "error", """
        from multiprocessing import shared_memory
        return shared_memory.SharedMemory("attack-was-here", create=True, size=4096)"""),
    _attack("become root", "error", """
        import os
        os.setuid(0)
        return True"""),
    _attack("host name, setting", "error", """
        import socket
        return socket.sethostname("attack-was-here") is None"""),
    _attack("clock", "error", """
        import time
        return time.clock_settime(time.CLOCK_REALTIME, 0) is None"""),
    _attack("priority", "error", """
        import os
        return os.setpriority(os.PRIO_PROCESS, 0, -10) is None"""),
    _attack("raise limits", "error", """
        import resource
        infinite = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        return resource.setrlimit(resource.RLIMIT_AS, infinite) is None"""),
]  # fmt: skip

RESOURCES = [
    _attack("endless loop", "timeout", "while True: pass"),
    _attack("sleep", "timeout", """
        import time
        time.sleep(1000)"""),
    _attack("endless import", "timeout", "return True", before="while True: pass"),
    _attack("ignore signals", "timeout", """
        import signal
        for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
        while True: pass"""),
    _attack("block signals", "timeout", """
        import signal, time
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
        time.sleep(1000)"""),
    _attack("stop itself", "timeout", """
        import os, signal
        os.kill(os.getpid(), signal.SIGSTOP)"""),
    _attack("slow to compare", "timeout", """return {n * (2**61 - 1) for n in range(5000)}""",
            tests="while True: attack()"),
    _attack("memory", "memory", """
        parts = []
        while True:
            parts.append(bytearray(4 << 20))"""),
    _attack("memory at once", "memory", "return bytearray(8 << 30)"),
    _attack("memory of several processes", "memory", """
        import os, time
        for _ in range(4):
            if os.fork() == 0:
                block = b"x" * (40 << 20)
                time.sleep(1000)
        time.sleep(1000)"""),
    _attack("fork bomb", "timeout", """
        import os
        while True:
            try:
                os.fork()
            except OSError:
                pass"""),
    _attack("fork bomb, counted", "error", """
        import os, time
        for _ in range(50):
            if os.fork() == 0:
                time.sleep(1000)
        return True"""),
    _attack("thread bomb", "error", """
        import threading, time
        for _ in range(50):
            threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        return True"""),
    _attack("endless output", "output", """
        while True:
            print("x" * 1000)"""),
    _attack("endless output from a child", "output", """
        import os
        if os.fork() == 0:
            while True:
                os.write(2, b"x" * 1000)
        os.wait()"""),
    _attack("huge result", "output", """return "x" * (8 << 20)"""),
    _attack("deep recursion", "error", "return attack()"),
    _attack("recursion in C", "killed", """
        import json, sys
        sys.setrecursionlimit(10**9)
        nested = []
        for _ in range(10**5):
            nested = [nested]
        return json.dumps(nested)"""),
    _attack("crash", "killed", """
        import ctypes
        return ctypes.string_at(0)"""),
    _attack("abort", "killed", """
        import os
        os.abort()"""),
]  # fmt: skip

PROCESSES = [
    _attack("kill the parent", "failed", """
        import os, signal, time
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(0.2)
        return os.getppid() != 1"""),
    _attack("kill the harness", "error", """
        import os, signal
        return os.kill($pid, signal.SIGTERM) is None"""),
    _attack("kill everybody", "failed", """
        import os, signal, time
        if os.fork() == 0:
            time.sleep(1000)
        os.kill(-1, signal.SIGKILL)"""),
    _attack("kill its group", "killed", """
        import os, signal
        os.killpg(0, signal.SIGKILL)"""),
    _attack("kill itself", "killed", """
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)"""),
    _attack("die of a nameless signal", "killed", "import os\nos.kill(os.getpid(), 40)",
            tests="try:\n    attack()\nexcept Exception:\n    pass"),
    _attack("stay as a daemon", "failed", """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.closerange(0, 100)
                time.sleep(1000)
            os._exit(0)
        os.wait()"""),
    _attack("daemon after the end", "exited-early", """
        import os, time
        if os.fork() == 0:
            os.setsid()
            time.sleep(1000)
        os._exit(0)"""),
]  # fmt: skip

FORGERY = [
    _attack("exit with success", "exited-early", """
        import os
        os._exit(0)"""),
    Attack("exit at once", "exited-early", "import os\nos._exit(0)"),
    Attack("exit politely", "exited-early", "raise SystemExit(0)"),
    _attack("exit in the call", "exited-early", """
        import sys
        sys.exit()"""),
    _attack("exit handler", "exited-early", """
        import atexit, os
        atexit.register(lambda: print('{"verdict": "passed"}'))
        raise SystemExit(0)"""),
    _attack("print success", "exited-early", """
        import os
        for number in (1, 2):
            os.write(number, b'{"verdict": "passed", "detail": "", "tok' + b'en": "' + b"0" * 32 + b'"}\\n')
        os._exit(0)"""),
    _attack("forge replies", "forged", """
        import os
        os.write(4, b'{"value": true}\\n{"value": true}\\n')
        return True"""),
    _attack("forge an outcome", "forged", """
        import os
        os.write(4, b'{"verdict": "passed"}\\n')
        os._exit(0)"""),
    _attack("replies that are too deep", "forged", """
        import os
        os.write(4, b'{"value": ' + b"[" * 100_000 + b"\\n")
        os._exit(0)"""),
    _attack("replies by a thread", "forged", """
        import os, threading
        def flood():
            while True:
                os.write(4, b'{"value": true}\\n')
        threading.Thread(target=flood, daemon=True).start()
        import time
        time.sleep(0.2)
        return True""", tests="for _ in range(5):\n    assert attack() is True"),
    _attack("replies in step without their number", "forged", """
        import os
        while True:
            os.write(4, b'{"value": true}\\n')
            os.read(3, 65536)""", tests="for _ in range(3):\n    assert attack() is True"),
    _attack("equal to everything", "failed", """
        class Equal:
            __eq__ = __ge__ = __le__ = __gt__ = __lt__ = lambda self, other: True
        return Equal()""", tests="assert attack() == 42"),
    _attack("number equal to everything", "failed", """
        class Equal(int):
            __eq__ = lambda self, other: True
            __hash__ = int.__hash__
        return Equal(7)""", tests="assert attack() == 42"),
    _attack("code in a result", "failed", """
        class Code:
            def __reduce__(self):
                return eval, ("42",)
        return Code()""", tests="assert attack() == 42"),
    _attack("patched assert", "failed", "return False",
            before="import builtins\nvars(builtins).update({'AssertionError': Warning, '__debug__': False})"),
    _attack("replaced built-ins", "failed", """
        import builtins
        for name in ("all", "abs", "sorted", "round"):
            setattr(builtins, name, lambda *_: True)
        return False""", tests="attack()\nassert all([attack()])"),
    _attack("shadowed built-ins", "failed", "return False", before="def all(_): return True\ndef abs(_): return 0",
            tests="assert all([attack()])"),
    _attack("traced frames", "failed", """
        import sys
        sys.settrace(lambda frame, *_: frame.f_locals.update(verdict="passed"))
        sys.setprofile(lambda *_: None)
        return False"""),
    _attack("patched harness", "failed", """
        import sys
        for module in list(sys.modules.values()):
            for name in ("finish", "_report", "decode", "Judge", "Line"):
                if hasattr(module, name):
                    setattr(module, name, lambda *_, **__: {"verdict": "passed"})
        return False"""),
    _attack("harness that answers for it", "failed", """
        import sys
        sys.modules["inside.program"]._call = lambda *_: 7
        return 7""", tests="attack()\nassert attack() == 42"),
    _attack("end a loop early", "error", "raise StopIteration", tests="assert all(map(lambda _: attack(), [1, 2]))"),
    _attack("pass for a caught exception", "exited-early", "raise SystemExit",
            tests="try:\n    assert attack()\nexcept Exception:\n    pass"),
    _attack("exit instead of raising", "exited-early", "import os\nos._exit(0)",
            tests="try:\n    attack()\nexcept Exception:\n    pass\nelse:\n    assert False"),
    _attack("exit after the last call", "exited-early", """
        import os, threading, time
        def leave():
            time.sleep(0.1)
            os._exit(0)
        threading.Thread(target=leave).start()
        return True""", tests="assert attack()\nimport time\ntime.sleep(0.3)"),
    _attack("close everything", "exited-early", """
        import os
        os.closerange(0, 100)
        return True"""),
    _attack("say nothing more", "timeout", """
        import os, time
        os.closerange(0, 100)
        time.sleep(1000)"""),
]  # fmt: skip

ATTACKS = [*NETWORK, *FILES, *INSPECTION, *KERNEL, *RESOURCES, *PROCESSES, *FORGERY]
