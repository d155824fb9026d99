"""`bitdistiller reproduce`: what `dvc repro` does, with warm stages, and as many side by side as there is room for.

DVC decides everything: its graph says what depends on what, its checks say what is up to date, its run cache restores
what ran before, and each stage ends as an entry of dvc.lock. So `dvc status` is clean afterwards, `dvc repro` finds
nothing to do, and each continues what the other began. Only the loop around it is ours, because `dvc repro` runs one
stage after another, and parses and rewrites the whole dvc.lock after each: with 160 stages those are 15,000 lines and
several seconds of YAML a time, more than most stages at micro scale take.

Here DVC reads its files once. Each stage runs in a child forked from that state, which calls `Stage.reproduce`
(DVC guards its files against concurrent processes, and lets go of its lock while a command runs) and leaves the stage's
lock entry in a file of its own. All entries enter dvc.lock at the end, whatever the end is; after a kill, the next run
enters the leftovers first. An entry only states which inputs gave which outputs, so it is as true later as now.

The command of a stage runs in the child, or on a machine of a Ray cluster while the child waits for it
(:mod:`bitdistiller.cluster`); all else is the same. :mod:`bitdistiller.reproduce_stages` has what DVC is asked for.
"""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from graphlib import TopologicalSorter
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import yaml
from dvc.exceptions import DvcException
from dvc.stage.exceptions import StageCmdFailedError

from bitdistiller.cluster.client import Cluster, Resources
from bitdistiller.config import PARAMS_FILE
from bitdistiller.errors import UserError
from bitdistiller.launch import VARIABLE
from bitdistiller.reproduce_stages import Pipeline
from bitdistiller.warm import WarmServer

LOGS = Path("artifacts") / "logs"
_GRACE_SECONDS = 10  # between being asked to stop and being made to
_TAIL_LINES = 20


def reproduce(
    targets: Sequence[str] = (),
    jobs: int | None = None,
    cold: bool = False,
    remote: str | None = None,
    ray: str | None = None,
    resources: Resources | None = None,
) -> None:
    """Bring ``targets`` up to date: all stages of this folder's dvc.yaml if there are none.

    ``jobs`` stages run at the same time; by default as many as the cores hold at the ``threads`` of params.yaml each,
    and one where there is a GPU. ``cold`` stages import everything themselves. What a stage prints is in
    artifacts/logs.
    With ``remote``, a DVC remote, what it holds is fetched instead of computed, and it gets what is computed.
    With ``ray``, an address as :class:`bitdistiller.cluster.client.Cluster` takes it, the stages' commands run on that
    cluster, as many as its machines hold at ``resources`` each.

    Raises:
        UserError: a stage failed, once those that ran beside it have ended; or the cluster or the remote is not there.
    """
    if not hasattr(os, "fork"):
        if ray is not None or remote:
            raise UserError("--ray and --remote need Linux or macOS; use `dvc repro`, `dvc push` and `dvc pull` here")
        sys.exit(subprocess.call([sys.executable, "-m", "dvc", "repro", *targets]))
    LOGS.mkdir(parents=True, exist_ok=True)
    engine = _Ray(ray, resources or Resources(), jobs) if ray is not None else _Here(jobs, cold)
    with _ended_by_sigterm(), engine:
        try:
            pipeline = Pipeline(targets, remote)
            if pipeline.outdated:
                engine.begin(pipeline)
                failed = _run(pipeline, engine)
            else:
                failed = []
                print(f"All {len(pipeline.stages)} stages are up to date")
        except DvcException as error:
            raise UserError(str(error)) from error
    if failed:
        raise UserError("; ".join(_failure(name) for name in failed))


class _Here:
    """Stages run on this machine, in the warm process where there can be one."""

    def __init__(self, jobs: int | None, cold: bool):
        self._jobs, self._server = jobs, None if cold else WarmServer(LOGS / "warm.log")

    def __enter__(self) -> None:
        if self._server:
            self._server.__enter__()

    def begin(self, pipeline: Pipeline) -> None:
        warm = self._server is not None and _warm_up(self._server)
        self._jobs = self._jobs or default_jobs(gpu=not warm and _has_gpu())

    def slots(self) -> int:
        """Stages that may run at this moment."""
        return self._jobs

    def visit(self, pipeline: Pipeline, name: str) -> None:
        """What a child does."""
        pipeline.visit(name)

    def __exit__(self, kind, *exception) -> None:
        if self._server:
            self._server.__exit__(kind, *exception)
            if kind is None:
                for reason, count in Counter(self._server.refusals).items():
                    print(f"{count} stages started cold: {reason}")


class _Ray:
    """The commands of stages run on the machines of a Ray cluster, which may come and go."""

    def __init__(self, address: str, resources: Resources, jobs: int | None):
        resources = resources._replace(cpus=resources.cpus or _threads())
        self._cluster, self._jobs, self._running = Cluster(address, resources, LOGS), jobs, ExitStack()

    def __enter__(self) -> None:
        """Nothing yet: if all is up to date, no cluster is needed."""

    def begin(self, pipeline: Pipeline) -> None:
        self._running.enter_context(self._cluster.connected(pipeline.root))
        print(self._cluster, flush=True)

    def slots(self) -> int:
        room = self._cluster.slots()
        return room if self._jobs is None else min(room, self._jobs)

    def visit(self, pipeline: Pipeline, name: str) -> None:
        pipeline.visit(name, lambda request: self._cluster.run(request, _log(name)))

    def __exit__(self, *_exception) -> None:
        self._running.close()


def default_jobs(gpu: bool = False) -> int:
    """Stages that the cores of this process hold at the same time; they would share a GPU's memory, hence one there."""
    if gpu:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // _threads())


def _threads() -> int:
    """Cores that a stage uses."""
    path = Path(PARAMS_FILE)
    return (yaml.safe_load(path.read_text()) or {}).get("threads", 1) if path.exists() else 1


class _Worker(NamedTuple):
    name: str
    process: BaseProcess
    began: float


def _run(pipeline: Pipeline, engine: _Here | _Ray) -> list[str]:
    """Visit every outdated stage when its turn comes; returns the failed ones, after which none is begun."""
    outdated, order = set(pipeline.outdated), list(pipeline.stages)
    sorter = TopologicalSorter({name: pipeline.needs[name] & outdated for name in outdated})
    sorter.prepare()
    progress = _Progress(pipeline.outdated, len(order), engine.slots())
    ready: list[str] = []
    running: dict[int, _Worker] = {}
    failed: list[str] = []
    try:
        while True:
            ready, slots = sorted([*ready, *sorter.get_ready()], key=order.index), engine.slots()
            while ready and len(running) < slots and not failed:
                worker = _start(pipeline, engine, ready.pop(0))
                running[worker.process.sentinel] = worker
            if not running and (failed or not ready):
                return failed
            progress.show(running.values(), slots)
            for sentinel in wait(list(running), timeout=1):
                worker = running.pop(sentinel)
                worker.process.join()
                if worker.process.exitcode:
                    failed.append(worker.name)
                else:
                    sorter.done(worker.name)
                progress.ended(worker)
    finally:
        progress.clear()
        _stop(list(running.values()))
        pipeline.enter()


def _start(pipeline: Pipeline, engine: _Here | _Ray, name: str) -> _Worker:
    process = multiprocessing.get_context("fork").Process(target=_work, args=(pipeline, engine, name), daemon=True)
    process.start()
    return _Worker(name, process, time.monotonic())


def _work(pipeline: Pipeline, engine: _Here | _Ray, name: str) -> None:
    """The life of a child: it leads a process group, so that the command can be stopped with it, and owns a log."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _log(name).write_text("")
    with open(os.devnull) as nothing, _log(name).open("a") as log:  # another machine may write to it too
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        engine.visit(pipeline, name)
    except StageCmdFailedError as error:  # the command itself has said why
        sys.exit(f"{error}")
    except (DvcException, UserError) as error:
        sys.exit(f"error: {error}")


def _stop(workers: list[_Worker]) -> None:
    """Let every worker end as on Ctrl-C; whichever does not is killed, at once on a second Ctrl-C."""
    if workers:
        print(f"Stopping {', '.join(worker.name for worker in workers)}", flush=True)
    deadline = time.monotonic() + _GRACE_SECONDS
    for number in (signal.SIGINT, signal.SIGKILL):
        for worker in workers:
            with suppress(ProcessLookupError):
                os.killpg(worker.process.pid, number)
        with suppress(KeyboardInterrupt):
            for worker in workers:
                worker.process.join(max(0, deadline - time.monotonic()))


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends this process the way Ctrl-C does: through every ``finally``."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _warm_up(server: WarmServer) -> bool:
    """Wait for the server and let stages find it; says so if they cannot."""
    reason = server.wait()
    if reason is None:
        os.environ[VARIABLE] = server.address
    else:
        print(f"Stages start cold: {reason}")
    return reason is None


def _has_gpu() -> bool:
    from bitdistiller.device import device

    return device().type != "cpu"


def _log(name: str) -> Path:
    return LOGS / f"{name.replace('/', '_').replace(':', '_')}.log"


def _failure(name: str) -> str:
    """One sentence on a failed stage: the error that its command printed; without one, its last lines go to stderr."""
    text = _log(name).read_text(errors="replace") if _log(name).exists() else ""
    lines = [line.rpartition("\r")[2] for line in text.rstrip().split("\n")]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        return f"stage {name} failed: {errors[-1]} ({_log(name)})"
    print(*lines[-_TAIL_LINES:], sep="\n", file=sys.stderr)
    return f"stage {name} failed, and its output ends as above ({_log(name)})"


def remaining_seconds(ended: Mapping[str, Sequence[float]], left: Mapping[str, int], jobs: int) -> float:
    """Estimate: a stage still to come (``left``, by kind) takes as long as the mean of its kind that ``ended``.

    A kind of which none has ended counts as the mean of all.
    """
    everything = [seconds for kind in ended.values() for seconds in kind]
    if not everything:
        return 0.0
    mean = {kind: sum(seconds) / len(seconds) for kind, seconds in ended.items()}
    overall = sum(everything) / len(everything)
    return sum(count * mean.get(kind, overall) for kind, count in left.items()) / max(1, jobs)


class _Progress:
    """A line for each stage that ended and, on a terminal, one that is kept up to date below them."""

    def __init__(self, names: Sequence[str], total: int, jobs: int):
        self._left, self._count, self._jobs = Counter(map(_kind, names)), len(names), jobs
        self._ended: dict[str, list[float]] = defaultdict(list)
        self._began = time.monotonic()
        self._live, self._waits = sys.stdout.isatty(), False
        unchanged = f", {total - len(names)} are up to date" if total > len(names) else ""
        print(f"{len(names)} stages to visit{unchanged}; {jobs} at a time, logs in {LOGS}", flush=True)

    def ended(self, worker: _Worker) -> None:
        seconds, kind = time.monotonic() - worker.began, _kind(worker.name)
        self._ended[kind].append(seconds)
        self._left[kind] -= 1
        self.clear()
        outcome = "FAILED after " if worker.process.exitcode else ""
        ahead = "" if self._live else f"   ({self._clocks()})"
        print(f"{self._position():>9}  {worker.name:32} {outcome}{seconds:.1f} s{ahead}", flush=True)

    def show(self, running: Collection[_Worker], jobs: int) -> None:
        if not jobs and not self._waits:
            self.clear()
            print("No machine has room for a stage; waiting for one", flush=True)
        self._jobs, self._waits = jobs, not jobs
        if self._live:
            names = ", ".join(f"{worker.name} {time.monotonic() - worker.began:.0f} s" for worker in running)
            line = f"{self._position():>9}  {self._clocks()}: {names}"
            print(f"\r\033[K{line[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)

    def clear(self) -> None:
        if self._live:
            print("\r\033[K", end="", flush=True)

    def _position(self) -> str:
        return f"{self._count - self._left.total()}/{self._count}"

    def _clocks(self) -> str:
        ahead = remaining_seconds(self._ended, self._left, self._jobs)
        return f"{_clock(time.monotonic() - self._began)} gone" + (f", about {_clock(ahead)} left" if ahead else "")


def _kind(name: str) -> str:
    """``train`` of ``train@int2``."""
    return name.partition("@")[0]


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
