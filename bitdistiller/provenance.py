"""Where numbers come from: commit, versions, machine; and what they cost: time, memory and energy.

Energy is read from Linux's RAPL counters, where there are any that this user may read (kernels since 2020 ask for root,
and most virtual machines have none). Only package domains count: the others are parts of them, or hold them.
"""

import hashlib
import os
import platform
import resource
import subprocess
import sys
import threading
import time
from importlib import metadata
from pathlib import Path

import torch
from torch import nn

from bitdistiller.assets import sha256_file
from bitdistiller.device import has_bf16
from bitdistiller.results import Cost, Environment

_LIBRARIES = (
    "bitdistiller",
    "torch",
    "transformers",
    "accelerate",
    "tokenizers",
    "lm_eval",
    "numpy",
    "pandas",
    "scipy",
)

LOCK = Path(__file__).parent.parent / "constraints.txt"


def environment() -> Environment:
    """The state of code, libraries and machine at this moment."""
    return Environment(
        commit=_git("rev-parse", "HEAD") or "unknown",
        dirty=bool(_git("status", "--porcelain", "--untracked-files=no", "--", "*.py", "*.yaml", "*.toml")),
        python=platform.python_version(),
        versions={name: metadata.version(name) for name in _LIBRARIES},
        machine=f"{_cpu_name()}, {platform.system()} {platform.machine()}",
        cores=len(_available_cores()),
        threads=torch.get_num_threads(),
        bf16=has_bf16(),
        lock_sha256=sha256_file(LOCK) if LOCK.exists() else None,
    )


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 of a model's parameters: name, dtype, shape and bytes of each, in the order of their names.

    Two models have the same one exactly if they have the same weights, in whatever files those lie.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpu_name() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown processor"


def _available_cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


POWERCAP = Path("/sys/class/powercap")
_POLL_SECONDS = 60.0  # a counter of 262 kJ, a common size, is full after 20 minutes at 200 W


class _Joules:
    """Energy since it was made, of all processor packages; it polls, as counters start again when they are full."""

    def __init__(self, packages: dict[Path, int]):
        """``packages`` are folders of RAPL domains with the microjoules after which their counter starts again."""
        self._packages, self._spent, self._lock = packages, 0, threading.Lock()
        self._last = {folder: _number(folder / "energy_uj") for folder in packages}
        threading.Thread(target=self._poll, daemon=True).start()

    def _poll(self) -> None:
        while True:
            time.sleep(_POLL_SECONDS)
            self.read()

    def read(self) -> float:
        with self._lock:
            for folder, size in self._packages.items():
                now = _number(folder / "energy_uj")
                self._spent += (now - self._last[folder]) % size
                self._last[folder] = now
            return self._spent / 1e6


def _packages(powercap: Path) -> dict[Path, int]:
    """Package domains whose energy can be read, with the range of their counters."""
    found = {}
    for folder in powercap.glob("intel-rapl:*"):
        try:
            if (folder / "name").read_text().startswith("package"):
                _number(folder / "energy_uj")
                found[folder] = _number(folder / "max_energy_range_uj")
        except (OSError, ValueError):
            return {}  # a sum over some of the packages would be too small
    return found


def _number(file: Path) -> int:
    return int(file.read_text())


class Stopwatch:
    """Started when made."""

    def __init__(self):
        self._start = time.perf_counter()
        packages = _packages(POWERCAP)
        self._joules = _Joules(packages) if packages else None

    def cost(self) -> Cost:
        """Seconds and joules since the start, and the process's peak resident memory."""
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return Cost(
            seconds=round(time.perf_counter() - self._start, 2),
            peak_bytes=peak,
            joules=None if self._joules is None else round(self._joules.read(), 2),
        )
