"""The warm process: it imports everything once, then forks a ready child for each command that asks.

Started by `bitdistiller reproduce` (`with WarmServer(log) as server`) and spoken to by :mod:`bitdistiller.launch`. The
child takes over the client's standard streams, folder, environment and arguments, runs the ordinary command line, and
its exit status goes back to the client.

Is it the same computation? A fork copies memory, so the child starts where a cold process is after its imports:

- Nothing but imports has happened here. No tensor operation has run, hence no OpenMP pool exists (its threads would not
  survive a fork, and libgomp would wait for them for ever); `torch.set_num_threads` works in the child as anywhere. The
  native threads that imports leave are those of OpenBLAS (numpy, scipy) and jemalloc (pyarrow), which register fork
  handlers. A Python thread would be refused: the server then says why and serves nobody.
- torch's generator is untouched. Those of `random` and numpy are seeded afresh, as at the start of a process.
- What imports wrote into the environment is written into the child's.
- A client is refused, and runs cold, if conditions differ (:func:`bitdistiller.launch.conditions`) or a source file of
  this package has changed since the server started: an edit is never ignored.

One thing differs, by some tenths: peak memory, which counts the imports of all commands but not what importing needs
for a moment. And there are machines without a server: CUDA does not survive a fork, so with a GPU nobody is served;
neither is anybody where there is no Linux (pidfd, death signals, sockets that pass descriptors).

The socket lies in a private folder (mode 0700). Whoever holds the server's standard input keeps it alive; when that is
closed, by intent or by death, the server kills its children and ends.
"""

import atexit
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import random
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import NamedTuple

from bitdistiller.errors import UserError
from bitdistiller.launch import ACCEPTED, LENGTH, conditions

_READY = "ready"
_PACKAGE = Path(__file__).resolve().parent
_NOT_PRELOADED = ("bitdistiller.testing", "bitdistiller.reproduce")  # no stage imports them
_REQUEST_SECONDS = 10
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of linux/prctl.h


class WarmServer:
    """A warm process beside this one, from ``with`` until its end; it imports while the caller does other things."""

    def __init__(self, log: Path):
        """``log`` receives what the server itself writes to stderr; ``refusals``, at the end, why clients ran cold."""
        self.refusals: list[str] = []
        self._log = log
        self._answered = False

    def __enter__(self) -> "WarmServer":
        self._folder = tempfile.TemporaryDirectory(prefix="bitdistiller-", ignore_cleanup_errors=True)
        self.address = str(Path(self._folder.name) / "socket")
        # -P: a folder named like a library, where the caller happens to be, is not that library. Not -m: a command asks
        # the main module for the name of its program.
        command = [sys.executable, "-P", "-c", "from bitdistiller.warm import main; main()", self.address]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        return self

    def wait(self) -> str | None:
        """Wait until everything is imported: None when it serves, or why it does not."""
        answer = self._process.stdout.readline().strip()
        self._answered = True
        if answer == _READY:
            return None
        return answer or f"the warm process failed ({self._log})"

    def __exit__(self, *_exception) -> None:
        """End the server and every command that still runs in it."""
        if not self._answered:  # it is importing, and would notice nothing else
            self._process.kill()
        with suppress(OSError):
            self._process.stdin.close()
        self.refusals = self._process.stdout.read().splitlines()
        self._process.stdout.close()
        self._process.wait()
        self._folder.cleanup()


def preload() -> None:
    """Import this package, and with it all that its commands use, and read the built-in text sets."""
    package = importlib.import_module("bitdistiller")
    for module in pkgutil.walk_packages(package.__path__, "bitdistiller."):
        if not module.name.startswith(_NOT_PRELOADED):
            with suppress(ModuleNotFoundError):  # what an optional extra brings
                importlib.import_module(module.name)
    from bitdistiller.data.text import read_ahead

    with suppress(UserError):  # a wheel that is damaged: the stage that needs it says so
        read_ahead()


def main() -> None:
    """Serve at the socket named by the first argument until standard input closes; in a child, run its command."""
    atexit.register(_leave)  # first, hence called last
    agreed, sources, environment = conditions(), _sources(), dict(os.environ)
    with redirect_stdout(sys.stderr):  # stdout is for the answers
        preload()
    if reason := _unfit():
        print(reason, flush=True)
        return
    written = {name: value for name, value in os.environ.items() if environment.get(name) != value}
    # Objects of the imports are nobody's garbage; left alone, their pages stay shared between children.
    gc.collect()
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen(64)
        print(_READY, flush=True)
        job = _Server(listener, agreed, sources).run()
    if job is not None:
        _become(job, written)
        _run()


_status = 0  # of this process, when it leaves


def _run() -> None:
    """The command line as the interpreter runs it: an exception goes on and is shown."""
    global _status
    from bitdistiller.cli import main as command_line

    try:
        command_line()
    except SystemExit as end:
        _status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    except KeyboardInterrupt:
        _status = 128 + signal.SIGINT
        raise
    except BaseException:
        _status = 1
        raise


def _leave() -> None:
    """End without dismantling thousands of modules, which takes 0.7 s a command; all other exit handlers have run."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(_status)


class _Job(NamedTuple):
    """A request as a child gets it: the client's message and its standard streams."""

    request: dict
    streams: list[int]


class _Running(NamedTuple):
    connection: socket.socket
    pid: int
    ended: int  # pidfd, readable when the child has ended

    def kill(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)


class _Server:
    """One loop over what can happen: a new client, a signal from one, its death, a child's end, the starter's end."""

    def __init__(self, listener: socket.socket, agreed: dict, sources: dict):
        self._listener, self._agreed, self._sources = listener, agreed, sources
        self._running: dict[int, _Running] = {}  # by the descriptors that belong to it

    def run(self) -> _Job | None:
        """Returns a job in a child that has to run it, and None in the server at its end."""
        with selectors.DefaultSelector() as self._events:
            self._events.register(0, selectors.EVENT_READ)
            self._events.register(self._listener, selectors.EVENT_READ)
            while True:
                # One event a round: what it changes may give the descriptors of the others another meaning.
                key, _ = self._events.select()[0]
                if key.fd == 0:
                    for running in self._running.values():
                        running.kill(signal.SIGKILL)
                    return None
                if key.fileobj is self._listener:
                    if job := self._accept():
                        return job
                elif key.fd == self._running[key.fd].ended:
                    self._end(self._running[key.fd])
                else:
                    self._hear(self._running[key.fd])

    def _accept(self) -> _Job | None:
        """Fork a child for the next client; returns its job in the child and None in the server."""
        connection, _ = self._listener.accept()
        connection.settimeout(_REQUEST_SECONDS)
        streams: list[int] = []
        try:
            job = _receive(connection, streams)
            reason = self._refusal(job.request)
            pid = None if reason else _fork()
        except (OSError, ValueError) as error:
            reason, pid = f"the warm process could not serve it ({error})", None
        if pid == 0:
            connection.close()
            for running in self._running.values():
                running.connection.close()
            return job
        for stream in streams:
            os.close(stream)
        with suppress(OSError):  # the client is gone; for a child, that is the next event
            connection.sendall(f"{reason or ACCEPTED}\n".encode())
        if pid is None:
            print(reason, flush=True)
            connection.close()
        else:
            running = _Running(connection, pid, os.pidfd_open(pid))
            for descriptor in (connection.fileno(), running.ended):
                self._running[descriptor] = running
                self._events.register(descriptor, selectors.EVENT_READ)
        return None

    def _refusal(self, request: dict) -> str | None:
        theirs = request["conditions"]
        if different := [name for name in self._agreed if theirs.get(name) != self._agreed[name]]:
            return f"{' and '.join(different)} differ from those of the warm process"
        if _sources() != self._sources:
            return "source files of bitdistiller changed since the warm process started"
        return None

    def _hear(self, running: _Running) -> None:
        """A signal that the client passes on; the end of its messages is its death."""
        try:
            numbers = running.connection.recv(16)
        except OSError:
            numbers = b""
        for number in numbers or [signal.SIGKILL]:
            running.kill(number)
        if not numbers:
            self._events.unregister(running.connection)

    def _end(self, running: _Running) -> None:
        running.kill(signal.SIGKILL)  # what the command itself had started and left behind
        _, status = os.waitpid(running.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        with suppress(OSError):
            running.connection.sendall(f"{code if code >= 0 else 128 - code}\n".encode())
        for descriptor in (running.connection.fileno(), running.ended):
            with suppress(KeyError):
                self._events.unregister(descriptor)
            del self._running[descriptor]
        running.connection.close()
        os.close(running.ended)


def _receive(connection: socket.socket, streams: list[int]) -> _Job:
    header, descriptors, _, _ = socket.recv_fds(connection, LENGTH.size, 3)
    streams += descriptors
    if len(header) != LENGTH.size or len(streams) != 3:
        raise ValueError("its beginning is incomplete")
    (length,) = LENGTH.unpack(header)
    payload = bytearray()
    while len(payload) < length:
        chunk = connection.recv(length - len(payload))
        if not chunk:
            raise ValueError("it ends too early")
        payload += chunk
    return _Job(json.loads(payload), streams)


def _fork() -> int:
    """Fork a child that leads a process group and dies with this process."""
    with warnings.catch_warnings():
        # Python 3.12 warns of the native threads that the module's docstring speaks of
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    with suppress(OSError):  # both sides do it, so that it is done for whichever comes first
        os.setpgid(pid, pid)
    if pid == 0:
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    return pid


def _become(job: _Job, written: dict[str, str]) -> None:
    """Make this child what the client is; ``written`` are the variables that imports set."""
    for number, stream in enumerate(job.streams):
        os.dup2(stream, number)
        os.close(stream)
    request = job.request
    os.chdir(request["folder"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"] | written)
    sys.argv[:], sys.path[:] = request["arguments"], request["import_path"]
    # The stream objects stay, because log handlers hold them; only stdout's buffering depends on where it leads.
    sys.stdout.reconfigure(line_buffering=os.isatty(1))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    random.seed()
    sys.modules["numpy"].random.seed()


def _sources() -> dict[str, tuple[int, int]]:
    """Time of change and size of every source file of this package."""
    files = [path for pattern in ("*.py", "*.yaml") for path in _PACKAGE.rglob(pattern)]
    return {str(path): (status.st_mtime_ns, status.st_size) for path in files for status in [path.stat()]}


def _unfit() -> str | None:
    """Why a child of this process would not be what a process of its own is."""
    if sys.modules["torch"].cuda.is_available():
        return "a GPU does not survive a fork"
    if threading.active_count() > 1:
        return f"an import started threads: {', '.join(thread.name for thread in threading.enumerate()[1:])}"
    return None
