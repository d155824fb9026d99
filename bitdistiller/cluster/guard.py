"""Runs a command that does not outlive whoever started it: when standard input ends, so does the command.

A Ray worker may vanish at any moment, with its machine's Ray processes or because the task was called off, and takes
along its direct children at best. A training process that lived on would write to the same files as the next attempt.
So the guard is not a direct child: it forks, the parent only relays the exit status, and the child watches the pipe
that is its standard input, whose other end the worker alone holds.
"""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

GRACE_SECONDS = 5  # between being asked to stop and being made to


def main() -> None:
    """Run the arguments as a command and exit as a shell would: 128 + n for a death by signal n."""
    watcher = os.fork()
    if watcher:
        _, status = os.waitpid(watcher, 0)
        sys.exit(_shell_status(os.waitstatus_to_exitcode(status)))
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where it was ignored, the command would ignore it too
    command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_end_with_starter, args=(command,), daemon=True).start()
    status = command.wait()
    _signal(command, signal.SIGKILL)  # what it had started itself and left behind
    sys.exit(_shell_status(status))


def _end_with_starter(command: subprocess.Popen) -> None:
    """Wait for the end of standard input, then stop the command, first as Ctrl-C does."""
    while os.read(0, 1024):
        pass
    _signal(command, signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        command.wait(GRACE_SECONDS)
    _signal(command, signal.SIGKILL)


def _signal(command: subprocess.Popen, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(command.pid, number)


def _shell_status(code: int) -> int:
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    main()
