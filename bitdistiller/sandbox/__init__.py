"""Programs that a model wrote, run so that they can touch nothing, and judged so that they cannot pretend.

``run_program(source, tests)`` runs a program against tests and says what became of it::

    outcome = run_program("def double(x): return 2 * x", "assert double(2) == 4")
    outcome.verdict  # "passed"

**What is guaranteed, on a machine that lets it be.** The program runs as nobody, without capabilities and with none to
be gained, in new user, mount, network, PID, IPC, UTS and cgroup namespaces. Its file system is the standard library,
read-only, three devices, and a private folder in memory, all of it ``noexec``: no home, no project, no /proc, no
program to start. There is no network, not even loopback; the environment and the arguments are empty; no descriptor is
inherited but the pipes it talks through. Some sixty system calls fail, and all that are newer than the list. Time, CPU
time, memory, processes, output, size and number of files are limited. When its outcome is known, every process it
started is gone, and so is every file, for both lived in namespaces that ended.

**What "passed" means.** Tests and program in one interpreter cannot be told apart: a program can replace ``assert``'s
exception, walk the frames, search memory for a secret, and print whatever success looks like. So they are two
processes. The tests run in one (``inside/judge.py``) where no line of the program ever runs, and call its functions in
the other (``inside/program.py``), which knows neither tests nor token; results come back as plain values of exact
built-in types (``inside/wire.py``). ``passed`` is reported only with a random token that the judge was given, after the
tests have run to their end. A program can pass without being right in one way: by returning the values that the tests
expect. With no tests it passes if it says that it has run to its end, and could lie.

**What is not guaranteed.** It is one kernel: a bug in it that a Python process without privileges can reach, through
the calls that are left, is a way out. Processors' side channels are open. Memory is bounded by watching (every 20 ms)
and by each process's address space, not by a cgroup, which most users cannot make: for an instant the processes
together may hold (limit of processes) times (limit of memory). Tests are trusted. They see copies of what the program
returns, so changed arguments and identity do not cross.

Bubblewrap is not used: it makes the same kernel calls, but starts a new program in its sandbox, which then has to have
an interpreter and its libraries in view; here the sandbox is made around an interpreter that runs already, which takes
about 20 ms a program. If a machine does not allow this (user namespaces switched off, a container that forbids them,
another system than Linux), nothing is run and a ``UserError`` says which call was refused. ``without_isolation`` gives
all this up except for limits and separate processes.
"""

from bitdistiller.sandbox.outcome import Limits, Outcome
from bitdistiller.sandbox.run import Worker, require_isolation, run_many, run_program

__all__ = ["Limits", "Outcome", "Worker", "require_isolation", "run_many", "run_program"]
