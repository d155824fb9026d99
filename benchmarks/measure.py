"""Time and memory of one call, for the benchmarks beside this file."""

import threading
import time
from collections.abc import Callable
from pathlib import Path


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def measured(call: Callable[[], object]) -> tuple[float, int]:
    """Seconds of one call, and how far resident memory rose above its level before."""
    before, peak, done = resident_bytes(), 0, threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return seconds, max(0, peak - before)
