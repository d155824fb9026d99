"""Running programs in sandboxes from outside: one worker process at a time or several, one job after another."""

import contextlib
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from bitdistiller.errors import UserError
from bitdistiller.sandbox.inside.wire import LENGTH_BYTES
from bitdistiller.sandbox.outcome import Limits, Outcome

_START_SECONDS = 120.0  # for the interpreter to import the standard library, on a machine under load
_GRACE_SECONDS = 5.0  # beyond a program's time, for the judge to report it
_WORKER = "import sys; sys.path.append(sys.argv[1]); from inside.worker import main; main(sys.argv.pop())"


class Worker:
    """One process that runs programs, each in a fresh sandbox; a context manager.

    ``without_isolation`` runs them as ordinary processes of this user, with resource limits and nothing else.
    """

    def __init__(self, limits: Limits, without_isolation: bool = False):
        self.limits, self._isolated = limits, not without_isolation
        self._process: subprocess.Popen | None = None
        self._buffer = bytearray()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End the worker and whatever it runs; returns when they are gone."""
        if self._process is None:
            return
        process, self._process = self._process, None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        self._buffer.clear()

    def facts(self) -> list[str]:
        """What isolates a program on this machine, one line each; ``UserError`` if nothing can."""
        return self._next_sandbox()

    def run(self, source: str, tests: str) -> Outcome:
        """Run one program against its tests; ``UserError`` if this machine cannot isolate it."""
        self._next_sandbox()
        token = secrets.token_hex(16)
        job = json.dumps({"token": token, "source": source, "tests": tests}).encode()
        started = time.monotonic()
        try:
            self._send(job)
            outcome = self._receive(self.limits.seconds + _GRACE_SECONDS)
        except TimeoutError:
            self.close()
            return _outside("timeout", f"more than {self.limits.seconds:g} s", time.monotonic() - started)
        except (EOFError, BrokenPipeError):
            self.close()
            return _outside("killed", "its judge ended without an outcome", time.monotonic() - started)
        if "broken" in outcome:
            self.close()
            raise RuntimeError(outcome["broken"])
        if outcome["verdict"] == "passed" and outcome["token"] != token:
            return _outside("forged", "a report of success that is not the judge's", time.monotonic() - started)
        del outcome["token"]
        outcome |= {key: _harmless(outcome[key]) for key in ("detail", "output")}
        return Outcome.model_validate(outcome)

    def _next_sandbox(self) -> list[str]:
        """Wait until a sandbox is there that has not had a job; starts the worker where there is none."""
        if self._process is None:
            self._process = _start(self.limits, self._isolated)
        try:
            greeting = self._receive(_START_SECONDS)
        except (EOFError, TimeoutError):
            self.close()
            raise RuntimeError("the sandbox's worker ended before its first program") from None
        if "ready" in greeting:
            return greeting["ready"]
        self.close()
        if "broken" in greeting:
            raise RuntimeError(greeting["broken"])
        raise UserError(
            f"this machine does not let a program be isolated ({greeting['refused']}), so nothing was run; allow user "
            "namespaces to this user (Linux 5.14 or newer, no container that forbids them), or, inside a virtual "
            "machine that holds nothing of value, pass --run-model-code-without-isolation"
        )

    def _send(self, job: bytes) -> None:
        self._process.stdin.write(len(job).to_bytes(LENGTH_BYTES, "big") + job)
        self._process.stdin.flush()

    def _receive(self, seconds: float) -> dict:
        deadline = time.monotonic() + seconds
        stdout = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                received = os.read(stdout, 1 << 16)
                if not received:
                    raise EOFError
                self._buffer += received
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer[:] = rest
        return json.loads(line)


def require_isolation() -> list[str]:
    """What isolates a program on this machine, one line each; ``UserError`` if nothing can."""
    with Worker(Limits()) as worker:
        return worker.facts()


def run_program(source: str, tests: str, limits: Limits | None = None, *, without_isolation: bool = False) -> Outcome:
    """Run one program against its tests, in a sandbox of its own.

    ``source`` is the program; the functions that ``tests`` use and do not define are its. Arguments and results cross
    as plain values (numbers, strings, bytes, None, lists, tuples, sets, dicts), and changes of an argument do not come
    back. ``UserError`` if this machine cannot isolate it. Takes about 50 ms more than the program.
    """
    with Worker(limits or Limits(), without_isolation) as worker:
        return worker.run(source, tests)


def run_many(
    programs: Sequence[tuple[str, str]],
    limits: Limits | None = None,
    *,
    at_a_time: int | None = None,
    without_isolation: bool = False,
    description: str = "programs",
) -> list[Outcome]:
    """Run (source, tests) pairs, ``at_a_time`` of them at once (all cores by default); outcomes in their order."""
    limits, own, workers = limits or Limits(), threading.local(), []

    def run(program: tuple[str, str]) -> Outcome:
        if not hasattr(own, "worker"):
            own.worker = Worker(limits, without_isolation)
            workers.append(own.worker)
        return own.worker.run(*program)

    count = min(at_a_time or os.cpu_count() or 1, max(len(programs), 1))
    pool = ThreadPoolExecutor(count)
    try:
        done = pool.map(run, programs)
        return list(tqdm(done, desc=description, total=len(programs), unit="program", leave=False))
    finally:
        pool.shutdown(cancel_futures=True)
        for worker in workers:
            worker.close()


def _start(limits: Limits, isolated: bool) -> subprocess.Popen:
    if sys.platform != "linux":
        raise UserError("code that a model wrote is run on Linux only; use a Linux machine or virtual machine")
    # One seed for the order of sets: the same program gets the same verdict twice.
    environment = {"PYTHONHASHSEED": "0"}
    if "LD_LIBRARY_PATH" in os.environ:
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    arguments = json.dumps(asdict(limits) | {"isolated": isolated})
    command = [sys.executable, "-sSPB", "-X", "utf8", "-c", _WORKER, str(Path(__file__).parent), arguments]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, cwd="/",
        start_new_session=True,
    )  # fmt: skip


def _harmless(text: str) -> str:
    """Text without what would steer a terminal that it is printed on."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def _outside(verdict: str, detail: str, seconds: float) -> Outcome:
    return Outcome(verdict=verdict, detail=detail, seconds=seconds, peak_bytes=0, output="")
