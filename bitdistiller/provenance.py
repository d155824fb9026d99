"""Where numbers come from: commit, versions, machine, time and memory."""

import os
import platform
import resource
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import torch

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
    )


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


class Stopwatch:
    """Started when made."""

    def __init__(self):
        self._start = time.perf_counter()

    def cost(self) -> Cost:
        """Seconds since the start and the process's peak resident memory."""
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return Cost(seconds=round(time.perf_counter() - self._start, 2), peak_bytes=peak)
