"""What a program may use, and what became of it."""

from dataclasses import dataclass
from typing import Literal

from bitdistiller.results import Record

Verdict = Literal[
    "passed", "failed", "error", "exited-early", "killed", "timeout", "memory", "output", "forged",
]  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    ``seconds`` is wall time from the moment its source arrives, ``cpu_seconds`` CPU time of each of its processes.
    ``memory_bytes`` is resident memory of all its processes together (looked at every 20 ms), and also the address
    space that each may add to the interpreter's own, which the kernel refuses to exceed. ``processes`` counts processes
    and threads, its first one included; ``file_bytes`` is the size of one file, ``disk_bytes`` of its private folder,
    ``output_bytes`` of all it prints.
    """

    seconds: float = 10.0
    cpu_seconds: int = 5
    memory_bytes: int = 256 << 20
    processes: int = 8
    file_bytes: int = 1 << 20
    disk_bytes: int = 8 << 20
    output_bytes: int = 64 << 10
    open_files: int = 64


class Outcome(Record):
    """What became of one program.

    ``passed``: its tests ran to their end. ``failed``: an assertion of the tests did not hold. ``error``: an exception,
    of the program or of a test that its result made fail. ``exited-early``: it ended by itself before its tests had.
    ``killed``: it ended by a signal, such as that of a crash. ``timeout``, ``memory``, ``output``: it was ended for
    using more than its limit. ``forged``: it sent something that is not the result of a call. ``detail`` says more in
    a line and ``output`` is the beginning of what it printed. ``seconds`` is wall time; ``peak_bytes`` the most
    resident memory seen.
    """

    verdict: Verdict
    detail: str
    seconds: float
    peak_bytes: int
    output: str

    @property
    def passed(self) -> bool:
        return self.verdict == "passed"
