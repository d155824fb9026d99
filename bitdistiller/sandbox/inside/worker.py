"""A process that makes one sandbox after another, each for one program.

It is started afresh from an interpreter without site-packages and reads no job itself: it forks, and the child moves
into a sandbox, starts the process in which the program will run, and only then reads a job. So a program's process has
a copy of this memory, in which there is nothing, neither of its own job nor of an earlier one. The standard library's
modules are imported here once, compiled ones above all: in the sandbox no shared library can be loaded.

    worker (host)            forks, says who is who in the new user namespace, waits, collects what is left
      judge (sandbox)        reads the job, runs the tests, watches, reports     judge.py
        first process        first of a new PID namespace: reaps; when it ends, everything in there does
          program            runs the candidate's code                           program.py
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path

from . import calls, isolate, kernel
from .judge import Child, Judge
from .program import main as run_program
from .wire import LENGTH_BYTES, Line

_REFUSED = 3
# Not loaded in advance: tests of the interpreter, and modules that reach for a terminal, a display or a database.
_LEFT_OUT = ("_test", "_xx", "xx", "_tkinter", "readline", "_curses", "_dbm", "_gdbm", "nis", "ossaudiodev", "spwd")
_USUAL = (
    "abc", "array", "bisect", "calendar", "cmath", "collections.abc", "copy", "dataclasses", "datetime", "decimal",
    "enum", "fractions", "functools", "hashlib", "heapq", "inspect", "io", "itertools", "json", "math", "numbers",
    "operator", "os.path", "queue", "random", "re", "statistics", "string", "textwrap", "threading", "time", "typing",
    "unicodedata",
)  # fmt: skip


def main(limits_text: str) -> None:
    """Serve jobs from standard input until it ends; a line of JSON a job to standard output."""
    limits = json.loads(limits_text)
    os.environ.clear()
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    _import_ahead()
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    status = 0
    while status == 0:
        pid = _start_judge(limits)
        try:
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except SystemExit:
            os.kill(pid, signal.SIGKILL)
            raise
        finally:
            _reap_the_rest()
    sys.exit(status)


def _start_judge(limits: dict) -> int:
    """Fork the next sandbox and map its users, once it has a namespace to map them in."""
    asking, asked = os.pipe()
    answered, answer = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(asking)
            os.close(answer)
            _judge(limits, parent, asked, answered)
        except BaseException:
            _report({"broken": traceback.format_exc()})
        finally:
            os._exit(_REFUSED)
    os.close(asked)
    os.close(answered)
    if os.read(asking, 1):
        try:
            isolate.map_identity(pid)
            os.write(answer, b"y")
        except OSError as error:
            os.write(answer, f"uid_map: {os.strerror(error.errno)}".encode())
    os.close(asking)
    os.close(answer)
    return pid


def _reap_the_rest() -> None:
    """End and reap what outlived its judge: nothing, unless that was killed or there is no PID namespace."""
    with contextlib.suppress(ChildProcessError):
        while True:
            for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
            os.waitpid(-1, 0)


def _judge(limits: dict, parent: int, asked: int, answered: int) -> None:
    """Everything that happens in the child; never returns."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    isolate.die_with_parent()
    root = os.geteuid() == 0
    try:
        proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
        address_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        if limits["isolated"]:
            _isolate(limits, root, asked, answered)
        os.close(asked)
        os.close(answered)
        isolate.die_with_parent(parent)  # once more: giving up an identity cancels it
        child = _start_program(limits, address_bytes, proc)
        child.resident_bytes()
    except OSError as error:
        _report({"refused": error.strerror or str(error)})
        os._exit(_REFUSED)
    _limit(limits, address_bytes)
    _report({"ready": isolate.facts(root) if limits["isolated"] else []})
    Judge(child, limits, _report).run(_job())


def _isolate(limits: dict, root: bool, asked: int, answered: int) -> None:
    def ask_for_map() -> None:
        os.write(asked, b"m")
        answer = os.read(answered, 200)
        if answer != b"y":
            raise OSError(0, answer.decode() or "uid_map: the parent has ended")

    if not calls.supported():
        raise OSError(0, f"seccomp: no list of system calls for {os.uname().machine}")
    isolate.enter(ask_for_map, root, limits["disk_bytes"])


def _start_program(limits: dict, address_bytes: int, proc: int) -> Child:
    """Fork the first process of the PID namespace, and from it the program's, which waits for its source."""
    requests, ask = os.pipe()
    hear, replies = os.pipe()
    watched, output = os.pipe()
    status, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(proc)
            _first_process((requests, replies, output), tell, limits, address_bytes)
        finally:
            os._exit(1)
    for fd in (requests, replies, output, tell):
        os.close(fd)
    return Child(pid, Line(hear, ask), watched, status, proc)


def _first_process(ends: tuple[int, int, int], tell: int, limits: dict, address_bytes: int) -> None:
    isolate.die_with_parent()
    os.setsid()
    isolated = limits["isolated"]
    # The judge and this process are of the same user and count as well.
    processes = limits["processes"] + 2 if isolated else None
    program = os.fork()
    if program == 0:
        isolate.die_with_parent()
        run_program(*ends, limits, address_bytes, processes)
    os.dup2(tell, 0)
    os.closerange(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    while True:
        pid, status, usage = os.wait4(-1, 0)
        if pid == program:
            os.write(0, f"{status} {usage.ru_utime + usage.ru_stime}".encode())
            os._exit(0)


def _limit(limits: dict, address_bytes: int) -> None:
    """Limits of the judge, which decodes what a program sends: a hostile value can make it slow or large, no more."""
    seconds = int(limits["seconds"]) + 10
    for which, value in [
        (resource.RLIMIT_AS, address_bytes + limits["memory_bytes"] + (256 << 20)),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ]:
        resource.setrlimit(which, (value, value))


def _job() -> dict:
    """The next job; ends this process and the worker if there is none."""
    length = _read_exactly(LENGTH_BYTES)
    return json.loads(_read_exactly(int.from_bytes(length, "big")))


def _read_exactly(size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        received = os.read(0, size - len(parts))
        if not received:
            os._exit(_REFUSED)
        parts += received
    return bytes(parts)


def _report(message: dict) -> None:
    rest = memoryview(json.dumps(message).encode() + b"\n")
    with contextlib.suppress(BrokenPipeError):
        while rest:
            rest = rest[os.write(1, rest) :]


def _import_ahead() -> None:
    """Import every compiled module of the standard library, and what programs usually import."""
    folders = [Path(folder) / "lib-dynload" for folder in isolate.library_folders()]
    compiled = {path.name.split(".")[0] for folder in folders if folder.is_dir() for path in folder.iterdir()}
    for name in sorted(name for name in compiled if not name.startswith(_LEFT_OUT)) + list(_USUAL):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    kernel.preload("libgcc_s.so.1")  # which the C library loads when a thread ends
