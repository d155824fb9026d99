"""The candidate's side: runs its source as a module, then answers calls of its functions until told to stop.

Everything in this process belongs to the candidate once its first line has run, this file included. So there is nothing
in it to protect: neither the tests nor the token were ever here, and what it says is only ever taken for the result of
a function call.
"""

import fcntl
import os
import random
import resource
import sys
import types
from contextlib import suppress
from functools import partial

from .wire import Line, decode, encode

NAME = "program"
_TEXT = 300  # characters of an exception's message


def main(requests: int, replies: int, output: int, limits: dict, address_bytes: int, processes: int | None) -> None:
    """Take over this process; never returns."""
    _keep_only(requests, replies, output)
    _limit(limits, address_bytes, processes)
    line = Line(3, 4)
    module = types.ModuleType(NAME)
    sys.modules[NAME] = sys.modules["__main__"] = module
    sys.argv = [""]
    random.seed(0)
    number, source = line.receive(None)
    begun = _attempt(lambda: exec(compile(source, f"{NAME}.py", "exec", dont_inherit=True), module.__dict__))
    line.send({"to": number} | begun)
    with suppress(EOFError):
        while True:
            number, call = line.receive(None)
            line.send({"to": number} | _attempt(partial(_call, module, *call) if call else lambda: None))
            if call is None:
                break
    os._exit(0)


def _call(module: types.ModuleType, name: str, arguments: list) -> object:
    positional, named = decode(arguments)
    if not hasattr(module, name):
        raise NameError(f"the program defines no {name!r}")
    return getattr(module, name)(*positional, **named)


def _attempt(action) -> dict:
    """The reply: a value, or the exception that came instead, whichever it was."""
    try:
        reply = {"value": encode(action())}
    except BaseException as error:
        reply = {"raised": [type(error).__name__, _text(error), _line_of(error)]}
    with suppress(Exception):
        sys.stdout.flush()
    return reply


def _text(error: BaseException) -> str:
    try:
        return str(error)[:_TEXT]
    except Exception:
        return ""


def _line_of(error: BaseException) -> int | None:
    """Line of the program at which it was raised or, for a syntax error, that is wrong."""
    line, trace = getattr(error, "lineno", None), error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == f"{NAME}.py":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line if isinstance(line, int) else None


def _keep_only(requests: int, replies: int, output: int) -> None:
    """Descriptors: 0 is empty, 1 and 2 are watched, 3 and 4 are the calls; all others are closed."""
    wanted = (os.open("/dev/null", os.O_RDONLY), output, output, requests, replies)
    kept = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in wanted]
    for number, fd in enumerate(kept):
        os.dup2(fd, number)
    os.closerange(len(kept), resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _limit(limits: dict, address_bytes: int, processes: int | None) -> None:
    """Limits of this process and its children; those of the whole sandbox are watched from outside."""
    values = {
        resource.RLIMIT_AS: address_bytes + limits["memory_bytes"],
        resource.RLIMIT_CPU: limits["cpu_seconds"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: 64,
        resource.RLIMIT_NICE: 0,
        resource.RLIMIT_RTPRIO: 0,
    }
    if processes is not None:
        values[resource.RLIMIT_NPROC] = processes
    for which, value in values.items():
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))
