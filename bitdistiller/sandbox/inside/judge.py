"""The tests' side: runs the tests in a process in which no line of the candidate's code ever runs.

A function that the tests use without defining it is the program's: calling it sends plain values to the program's
process and returns, or raises, what comes back. That process is in a PID namespace that this one is not part of, so it
cannot see, signal or trace this one; it was forked before this one read its job, so it has never held the tests or the
token. A result that reads ``passed`` therefore means that the tests ran to their end on plain values.

A timer interrupts it to look at what no resource limit covers: wall time, memory of all processes together, and output.
"""

import builtins
import contextlib
import os
import random
import select
import signal
import symtable
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from .wire import Line, MalformedError, TooLongError, decode, encode

_LOOK_SECONDS = 0.02
_KEPT_OUTPUT = 4096  # bytes of what the program prints, for the user to read
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TESTS = "tests"
# Exceptions with which a program could end a loop in the tests early, or pass for a failed comparison.
_NOT_RAISED_HERE = (StopIteration, StopAsyncIteration, AssertionError)


class Child:
    """What the judge knows of the program's process: how to talk to it, measure it, end it and learn how it ended.

    ``pid`` is the first process of its PID namespace: with it everything in there ends. ``proc`` is a descriptor of
    the host's /proc, opened before that went out of sight.
    """

    def __init__(self, pid: int, line: Line, output: int, status: int, proc: int):
        self.pid, self.line, self.output, self._status, self._proc = pid, line, output, status, proc
        os.set_blocking(output, False)

    def resident_bytes(self) -> int:
        """Memory of all processes in there; pages they share count in each."""
        total, queue = 0, [self.pid]
        while queue:
            pid = queue.pop()
            try:
                total += int(self._read(f"{pid}/statm").split()[1]) * _PAGE
                queue += [int(child) for task in self._tasks(pid) for child in self._read(task).split()]
            except (FileNotFoundError, ProcessLookupError):
                if pid == self.pid:
                    break
        return total

    def _tasks(self, pid: int) -> list[str]:
        folder = os.open(f"{pid}/task", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._proc)
        try:
            return [f"{pid}/task/{thread}/children" for thread in os.listdir(folder)]
        finally:
            os.close(folder)

    def _read(self, name: str) -> str:
        fd = os.open(name, os.O_RDONLY, dir_fd=self._proc)
        try:
            return os.read(fd, 1 << 16).decode()
        finally:
            os.close(fd)

    def wait_for_end(self) -> tuple[int, float]:
        """Wait status of the program's first process and its CPU seconds."""
        words = os.read(self._status, 100).split()
        return (int(words[0]), float(words[1])) if len(words) == 2 else (signal.SIGKILL, 0.0)

    def end(self) -> None:
        """Kill everything in there; returns when nothing is left."""
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError):
                kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


class Judge:
    """One program under test; ``run`` never returns."""

    def __init__(self, child: Child, limits: dict, report: Callable[[dict], None]):
        self.child, self.limits, self._report = child, limits, report
        self.started, self.peak, self.printed, self._kept = time.monotonic(), 0, 0, bytearray()
        self._token: str | None = None

    def run(self, job: dict) -> None:
        """Run the tests of a job, report one outcome, and end this process with everything below it."""
        self._token = job["token"]
        self.started = time.monotonic()
        signal.signal(signal.SIGALRM, self._look)
        signal.setitimer(signal.ITIMER_REAL, _LOOK_SECONDS, _LOOK_SECONDS)
        try:
            self._exchange(job["source"])
            self._test(job["tests"])
        except BaseException as error:
            self.finish(*self._what_failed(error, job["tests"]))
        self.finish("passed", "")

    def _test(self, tests: str) -> None:
        random.seed(0)
        namespace = {"__name__": _TESTS} | {name: self._function(name) for name in undefined_names(tests)}
        exec(compile(tests, _TESTS, "exec", dont_inherit=True, optimize=0), namespace)
        self._exchange(None)

    def _function(self, name: str) -> Callable:
        def call(*positional, **named):
            return self._exchange([name, encode((list(positional), named))])

        call.__name__ = call.__qualname__ = name
        return call

    def _exchange(self, message: object) -> object:
        """Send a message, wait for its reply, and return or raise what it says.

        What is neither a value nor an ordinary exception ends the matter here, where no test can catch it.
        """
        try:
            self._nothing_unasked()
            number = os.urandom(8).hex()  # which whoever replies without having been asked does not know
            self.child.line.send([number, message])
            reply = _read_reply(self.child.line.receive(), number)
        except MalformedError as error:
            self.finish("forged", f"the program sent something that is not the result of a call: {error}")
        except TooLongError as error:
            self.finish("output", str(error))
        except (EOFError, BrokenPipeError):
            self.finish(*self._how_it_ended())
        if not isinstance(reply, _Raised):
            return reply
        if reply.kind == "SystemExit":
            self.finish("exited-early", reply.summary)
        raise reply.as_exception()

    def _nothing_unasked(self) -> None:
        poll = select.poll()
        poll.register(self.child.line.incoming, select.POLLIN)
        if self.child.line.pending() or any(event & select.POLLIN for _, event in poll.poll(0)):
            raise MalformedError("a reply before there was a call")

    def _how_it_ended(self) -> tuple[str, str]:
        status, cpu_seconds = self.child.wait_for_end()
        if os.WIFEXITED(status):
            return "exited-early", f"ended with status {os.WEXITSTATUS(status)} before its tests had ended"
        number = os.WTERMSIG(status)
        if number == signal.SIGKILL and cpu_seconds >= self.limits["cpu_seconds"] - 0.1:
            return "timeout", f"more than {self.limits['cpu_seconds']} s of CPU time"
        return "killed", f"ended by {_signal_name(number)}"

    def _what_failed(self, error: BaseException, tests: str) -> tuple[str, str]:
        raised = getattr(error, "raised_by_program", None)
        if raised is not None:
            return "memory" if raised.kind == "MemoryError" else "error", raised.summary
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == _TESTS]
        place = f", test line {lines[-1]}: {tests.splitlines()[lines[-1] - 1].strip()}" if lines else ""
        if isinstance(error, AssertionError):
            return "failed", f"{str(error) or 'assertion failed'}{place}"
        return "error", f"{type(error).__name__}: {error}{place}"

    def _look(self, *_) -> None:
        self._measure()
        poll = select.poll()
        poll.register(0, 0)  # hung up when whoever asked is gone
        if poll.poll(0):
            self.finish("killed", "nobody waits for the outcome")
        self._take_output()
        if self._too_much_output():
            self.finish("output", self._too_much_output())
        if self.peak > self.limits["memory_bytes"]:
            self.finish("memory", f"more than {self.limits['memory_bytes']:,} bytes in all processes together")
        if time.monotonic() - self.started > self.limits["seconds"]:
            self.finish("timeout", f"more than {self.limits['seconds']:g} s")

    def _measure(self) -> None:
        self.peak = max(self.peak, self.child.resident_bytes())

    def _take_output(self) -> None:
        """Take what there is to read, up to a little more than the limit."""
        with contextlib.suppress(BlockingIOError):
            while not self._too_much_output() and (received := os.read(self.child.output, 1 << 16)):
                self.printed += len(received)
                self._kept += received[: _KEPT_OUTPUT - len(self._kept)]

    def _too_much_output(self) -> str:
        limit = self.limits["output_bytes"]
        return f"more than {limit:,} bytes printed" if self.printed > limit else ""

    def finish(self, verdict: str, detail: str) -> None:
        """End the program and all its processes, report, and end this process; never returns."""
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        seconds = time.monotonic() - self.started
        self._measure()
        self.child.end()
        self._take_output()
        if verdict == "passed" and self._too_much_output():
            verdict, detail = "output", self._too_much_output()
        outcome = {"verdict": verdict, "detail": " ".join(detail.split())[:500], "seconds": seconds}
        outcome |= {"peak_bytes": self.peak, "output": self._kept.decode(errors="replace")}
        self._report(outcome | {"token": self._token if verdict == "passed" else None})
        os._exit(0)


@dataclass(frozen=True)
class _Raised:
    """An exception of the program."""

    kind: str
    text: str
    line: int | None

    @property
    def summary(self) -> str:
        return f"{self.kind}: {self.text}" + ("" if self.line is None else f", line {self.line} of the program")

    def as_exception(self) -> Exception:
        """The built-in exception of that name, where tests may catch one; else a ``RuntimeError``."""
        found = getattr(builtins, self.kind, None)
        ordinary = isinstance(found, type) and issubclass(found, Exception) and not issubclass(found, _NOT_RAISED_HERE)
        try:
            error = found(self.text) if ordinary else RuntimeError(self.text)
        except TypeError:  # a few take more arguments
            error = RuntimeError(self.text)
        error.raised_by_program = self
        return error


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most of the real-time signals have none
        return f"signal {number}"


def _read_reply(message: object, number: str) -> object:
    match message:
        case {"to": to} if to != number:
            raise MalformedError("a reply to no call")
        case {"to": _, "value": value, **rest} if not rest:
            return decode(value)
        case {"to": _, "raised": [str() as kind, str() as text, int() | None as line], **rest} if not rest:
            return _Raised(kind, text, line)
    raise MalformedError("neither a value nor an exception")


def undefined_names(source: str) -> list[str]:
    """Global names that a program uses without defining or importing them, built-ins aside.

    >>> undefined_names("from math import pi\\nfor n in range(3):\\n    assert abs(area(n) - n * pi) < tolerance()")
    ['area', 'tolerance']
    """
    top = symtable.symtable(source, _TESTS, "exec")
    used, defined, queue = set(), set(), [top]
    while queue:
        table = queue.pop()
        queue += table.get_children()
        for symbol in table.get_symbols():
            if table is top or symbol.is_global():
                bound = symbol.is_assigned() or symbol.is_imported()
                (defined if bound else used).add(symbol.get_name())
    return sorted(used - defined - set(dir(builtins)))
