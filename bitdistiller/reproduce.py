"""`bitdistiller reproduce`: what `dvc repro` does, with warm stages, and as many side by side as there are cores for.

DVC decides everything: its graph says what depends on what, its checks say what is up to date, its run cache restores
what ran before, and each stage ends as an entry of dvc.lock. So `dvc status` is clean afterwards, `dvc repro` finds
nothing to do, and each continues what the other began. Only the loop around it is ours, because `dvc repro` runs one
stage after another, and parses and rewrites the whole dvc.lock after each: with 160 stages those are 15,000 lines and
several seconds of YAML a time, more than most stages at micro scale take.

Here DVC reads its files once. Each stage runs in a child forked from that state, which calls `Stage.reproduce`
(DVC guards its files against concurrent processes, and lets go of its lock while a command runs) and leaves the stage's
lock entry in a file of its own. All entries enter dvc.lock at the end, whatever the end is; after a kill, the next run
enters the leftovers first. An entry only states which inputs gave which outputs, so it is as true later as now.

DVC promises its command line and not its modules. Of those, this relies on `Repo`, on `Stage.changed` and `.reproduce`,
on the planning functions of `dvc.repo.reproduce` and on how a lock entry is serialized; tests compare the result with
that of `dvc repro`, to the byte.
"""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from graphlib import TopologicalSorter
from itertools import chain
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import yaml
from dvc.exceptions import DvcException
from dvc.lock import Lock, LockError
from dvc.repo import Repo
from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro
from dvc.stage import PipelineStage
from dvc.stage.exceptions import StageCmdFailedError
from dvc.stage.serialize import to_lockfile
from dvc.utils.serialize import dump_yaml, load_yaml, modify_yaml
from tqdm import tqdm

from bitdistiller.config import PARAMS_FILE
from bitdistiller.errors import UserError
from bitdistiller.launch import VARIABLE
from bitdistiller.warm import WarmServer

LOGS = Path("artifacts") / "logs"
_GRACE_SECONDS = 10  # between being asked to stop and being made to
_TAIL_LINES = 20


def reproduce(targets: Sequence[str] = (), jobs: int | None = None, cold: bool = False) -> None:
    """Bring ``targets`` up to date: all stages of this folder's dvc.yaml if there are none.

    ``jobs`` stages run at the same time; by default as many as the cores hold at the ``threads`` of params.yaml each,
    and one where there is a GPU. ``cold`` stages import everything themselves. What a stage prints is in
    artifacts/logs. Raises UserError if a stage fails, once those that ran beside it have ended.
    """
    if not hasattr(os, "fork"):
        sys.exit(subprocess.call([sys.executable, "-m", "dvc", "repro", *targets]))
    LOGS.mkdir(parents=True, exist_ok=True)
    with _ended_by_sigterm(), nullcontext() if cold else WarmServer(LOGS / "warm.log") as server:
        try:
            pipeline = Pipeline(targets)
            if pipeline.outdated:
                warm = server is not None and _warm_up(server)
                failed = _run(pipeline, jobs or default_jobs(gpu=not warm and _has_gpu()))
            else:
                failed = []
                print(f"All {len(pipeline.stages)} stages are up to date")
        except DvcException as error:
            raise UserError(str(error)) from error
    for reason, count in Counter(server.refusals if server else ()).items():
        print(f"{count} stages started cold: {reason}")
    if failed:
        raise UserError("; ".join(_failure(name) for name in failed))


def default_jobs(gpu: bool = False) -> int:
    """Stages that the cores of this process hold at the same time; they would share a GPU's memory, hence one there."""
    if gpu:
        return 1
    path = Path(PARAMS_FILE)
    threads = (yaml.safe_load(path.read_text()) or {}).get("threads", 1) if path.exists() else 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // threads)


class _PromptLock(Lock):
    """DVC's lock on its files, asked for 50 times a second instead of twice: stages hold it for tenths of a second."""

    def lock(self) -> None:
        while True:
            try:
                return self._do_lock()
            except LockError:
                time.sleep(0.02)


class Pipeline:
    """The stages that `dvc repro` would visit for the same targets, as DVC sees them.

    ``stages`` maps names to DVC's stages, first those that the first target needs; ``needs`` maps them to the names of
    those whose outputs a stage uses.
    ``outdated`` are the names that have to be visited: stages that changed, and all that depend on one.
    """

    def __init__(self, targets: Sequence[str] = ()):
        tqdm.monitor_interval = 0  # a thread behind DVC's progress bars; threads do not survive a fork
        self._repo = Repo(_wait_for_lock=True)
        if isinstance(self._repo.lock, Lock):
            self._repo.lock = _PromptLock(self._repo.lock.lockfile)
        self._finished = Path(self._repo.tmp_dir) / "reproduced"
        self._owner = os.getpid()
        self._finished.mkdir(exist_ok=True)
        self.enter()
        with self._repo.lock:
            _drop_torn(Path(self._repo.tmp_dir) / "rwlock")
            graph = get_active_graph(self._repo.index.graph)
            plan = dict.fromkeys(chain.from_iterable(plan_repro(graph, [stage]) for stage in self._collect(targets)))
            self.stages = {stage.addressing: stage for stage in plan}
            self.needs = {stage.addressing: {need.addressing for need in graph.successors(stage)} for stage in plan}
            self.outdated: list[str] = []
            for name, stage in self.stages.items():
                if not self.needs[name].isdisjoint(self.outdated) or stage.changed():
                    self.outdated.append(name)
        self._repo.state.close()  # a database connection is not to be shared with children

    def _collect(self, targets: Sequence[str]) -> list:
        if targets:
            return collect_stages(self._repo, targets)
        path = os.path.abspath("dvc.yaml")
        stages = [stage for stage in self._repo.index.stages if stage.path == path]
        if not stages:
            raise UserError("there is no dvc.yaml with stages here; change to the folder of a scale")
        return stages

    def visit(self, name: str) -> None:
        """Run a stage unless it is up to date or in the run cache, and leave its entry for `enter`.

        Changes what this object knows of the stage, so it is for a child process.
        """
        stage = self.stages[name]
        with self._repo.lock, self._repo.scm_context(quiet=True):
            if not stage.reproduce():
                return
            if not isinstance(stage, PipelineStage):  # a .dvc file is its own lock
                stage.dump()
                return
        lock = os.path.relpath(Path(stage.path).with_suffix(".lock"), self._repo.root_dir)
        file = self._finished / f"{self._owner}-{list(self.stages).index(name):06d}.yaml"
        dump_yaml(file.with_suffix(".tmp"), {"lock": lock, "stages": to_lockfile(stage)})
        file.with_suffix(".tmp").replace(file)

    def enter(self) -> None:
        """Move the entries of finished stages into their dvc.lock, in one step each."""
        with self._repo.lock, self._repo.scm_context(quiet=True) as scm:
            files = sorted(self._finished.glob("*.yaml"))
            entries: dict[str, dict] = defaultdict(dict)
            for record in map(load_yaml, files):
                entries[record["lock"]].update(record["stages"])
            for name, stages in entries.items():
                lock, draft = Path(self._repo.root_dir) / name, self._finished / "dvc.lock"
                if lock.exists():
                    shutil.copy(lock, draft)
                with modify_yaml(draft) as content:
                    content.setdefault("schema", "2.0")
                    content.setdefault("stages", {}).update(stages)
                draft.replace(lock)
                scm.track_file(os.path.relpath(lock))
            for file in files:
                file.unlink()


def _drop_torn(locks: Path) -> None:
    """Remove DVC's list of files in use if a kill left half of it: it would refuse to work until somebody did."""
    try:
        json.loads(locks.read_text() if locks.exists() else "{}")
    except ValueError:
        locks.unlink()


class _Worker(NamedTuple):
    name: str
    process: BaseProcess
    began: float


def _run(pipeline: Pipeline, jobs: int) -> list[str]:
    """Visit every outdated stage when its turn comes; returns the failed ones, after which none is begun."""
    outdated, order = set(pipeline.outdated), list(pipeline.stages)
    sorter = TopologicalSorter({name: pipeline.needs[name] & outdated for name in outdated})
    sorter.prepare()
    progress = _Progress(pipeline.outdated, len(order), jobs)
    ready: list[str] = []
    running: dict[int, _Worker] = {}
    failed: list[str] = []
    try:
        while True:
            ready = sorted([*ready, *sorter.get_ready()], key=order.index)
            while ready and len(running) < jobs and not failed:
                worker = _start(pipeline, ready.pop(0))
                running[worker.process.sentinel] = worker
            if not running:
                return failed
            progress.show(running.values())
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


def _start(pipeline: Pipeline, name: str) -> _Worker:
    process = multiprocessing.get_context("fork").Process(target=_work, args=(pipeline, name), daemon=True)
    process.start()
    return _Worker(name, process, time.monotonic())


def _work(pipeline: Pipeline, name: str) -> None:
    """The life of a child: it leads a process group, so that the command can be stopped with it, and owns a log."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with open(os.devnull) as nothing, _log(name).open("w") as log:
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        pipeline.visit(name)
    except StageCmdFailedError as error:  # the command itself has said why
        sys.exit(f"{error}")
    except DvcException as error:
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
    return sum(count * mean.get(kind, overall) for kind, count in left.items()) / jobs


class _Progress:
    """A line for each stage that ended and, on a terminal, one that is kept up to date below them."""

    def __init__(self, names: Sequence[str], total: int, jobs: int):
        self._left, self._count, self._jobs = Counter(map(_kind, names)), len(names), jobs
        self._ended: dict[str, list[float]] = defaultdict(list)
        self._began = time.monotonic()
        self._live = sys.stdout.isatty()
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

    def show(self, running) -> None:
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
