"""The stages of a pipeline as DVC sees them: which have to be visited, what a visit is, and what a remote shares.

DVC promises its command line and not its modules. Whatever `bitdistiller reproduce` relies on beyond that is in this
file: `Repo`, `Stage.changed`, `.reproduce` and `.run`, the planning functions of `dvc.repo.reproduce`, how a lock entry
is serialized, the function that starts a stage's command, and the run cache. Tests compare the result with that of
`dvc repro`, to the byte.

A stage's command may run on another machine (:mod:`bitdistiller.cluster`), but DVC itself never does: its locks name
processes by their numbers, which mean nothing to another machine. So the machine where the pipeline was started checks,
hashes, caches and records, and only ``cmd`` travels.

Two machines that share no folder share a DVC remote. DVC's own `push --run-cache` leaves out what git keeps (outputs
with ``cache: false``), so a second machine cannot use what the first one ran. Here every visited stage is complete in
the remote: all of its outputs, and its entry in the run cache, which says which inputs gave which outputs.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import dvc.stage.run
from dvc.exceptions import DvcException
from dvc.lock import Lock, LockError
from dvc.repo import Repo
from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro
from dvc.stage import PipelineStage, Stage
from dvc.stage.cache import StageCache, _can_hash, _get_cache_hash, _get_stage_hash
from dvc.stage.exceptions import StageCmdFailedError
from dvc.stage.serialize import to_lockfile, to_single_stage_lockfile
from dvc.utils.serialize import dump_yaml, load_yaml, modify_yaml
from tqdm import tqdm

from bitdistiller.cluster.machine import wait_for
from bitdistiller.errors import UserError

# A request to run a stage's command on some machine, and what became of it (bitdistiller.cluster.machine).
Elsewhere = Callable[[dict], dict]


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
    ``outdated`` are the names that have to be visited: stages that changed, and all that depend on one. With a remote
    to share, named by ``remote``, that is every stage.
    """

    def __init__(self, targets: Sequence[str] = (), remote: str | None = None):
        self._repo, self._shared = _open(remote)
        self._remote = remote
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
                if remote or not self.needs[name].isdisjoint(self.outdated) or stage.changed():
                    self.outdated.append(name)
        self._repo.state.close()  # a database connection is not to be shared with children

    @property
    def root(self) -> Path:
        """DVC's root folder."""
        return Path(self._repo.root_dir)

    def _collect(self, targets: Sequence[str]) -> list:
        if targets:
            return collect_stages(self._repo, targets)
        path = os.path.abspath("dvc.yaml")
        stages = [stage for stage in self._repo.index.stages if stage.path == path]
        if not stages:
            raise UserError("there is no dvc.yaml with stages here; change to the folder of a scale")
        return stages

    def visit(self, name: str, elsewhere: Elsewhere | None = None) -> None:
        """Run a stage unless it is up to date or in the run cache, and leave its entry for `enter`.

        ``elsewhere`` runs its command, if not this machine. Changes what this object and DVC know, so it is for a child
        process.
        """
        stage = self.stages[name]
        if elsewhere:
            dvc.stage.run.cmd_run = lambda stage, **_: self._run_elsewhere(stage, elsewhere)
        with self._repo.lock, self._repo.scm_context(quiet=True):
            if _reproduce(stage, self._shared):
                self._leave_entry(name, stage)
            if self._shared and isinstance(stage, PipelineStage):
                self._shared.share(stage)

    def _leave_entry(self, name: str, stage: Stage) -> None:
        if not isinstance(stage, PipelineStage):  # a .dvc file is its own lock
            stage.dump()
            return
        lock = os.path.relpath(Path(stage.path).with_suffix(".lock"), self._repo.root_dir)
        file = self._finished / f"{self._owner}-{list(self.stages).index(name):06d}.yaml"
        dump_yaml(file.with_suffix(".tmp"), {"lock": lock, "stages": to_lockfile(stage)})
        file.with_suffix(".tmp").replace(file)

    def _run_elsewhere(self, stage: Stage, elsewhere: Elsewhere) -> None:
        """What DVC does in the place of starting a command: afterwards, the outputs are in this folder."""
        answer = elsewhere(self._request(stage))
        if answer["output"]:
            print(answer["output"], flush=True)
        if answer["error"]:
            raise DvcException(answer["error"])
        if answer["status"]:
            raise StageCmdFailedError(stage.cmd, answer["status"])
        if answer["record"]:
            with self._repo.lock:
                self._shared.place(answer["record"])
        wait_for(map(Path, answer["made"]))

    def _request(self, stage: Stage) -> dict:
        """All that another machine has to know, as JSON: the command, what it reads and writes, and by which hashes.

        Paths are relative to DVC's root, which is ``root`` on this machine.
        """
        root = self.root
        return {
            "name": stage.addressing,
            "commands": stage.cmd if isinstance(stage.cmd, list) else stage.cmd.splitlines(),
            "root": str(root),
            "here": os.path.relpath(".", root),
            "folder": os.path.relpath(stage.wdir, root),
            "reads": [os.path.relpath(path, root) for path in sorted({dep.fs_path for dep in stage.deps})],
            "writes": [os.path.relpath(out.fs_path, root) for out in stage.outs if not out.persist],
            "given": _given(stage),
            "commit": _commit(root),
            "remote": self._remote,
            "inputs": self._inputs(stage) if self._shared else [],
        }

    def _inputs(self, stage: Stage) -> list[dict]:
        """Records of the stages whose outputs this one uses; the outputs themselves are put into the remote."""
        needed = [self.stages[name] for name in sorted(self.needs[stage.addressing])]
        with self._repo.lock:
            for need in needed:
                need.save_outs()
            return [self._shared.offer(need) for need in needed if isinstance(need, PipelineStage)]

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


class SharedRuns(StageCache):
    """DVC's run cache, except that it looks into the remote too, and that all of a stage is pushed there.

    A record is what dvc.lock says of a stage, with its working folder relative to DVC's root.
    """

    def _load(self, stage: Stage) -> dict | None:
        """As DVC's, after fetching what the remote knows of runs with the same command, inputs and parameters."""
        key = _get_stage_hash(stage)
        local = Path(self._get_cache_dir(key))
        with _reached():
            remote, folder = self._runs(key)
            for source in remote.fs.find(folder) if remote.fs.exists(folder) else ():
                name = remote.fs.name(source)
                if not (local / name).exists():
                    draft = Path(self.repo.tmp_dir) / f"{name}.{os.getpid()}"
                    remote.fs.get_file(source, str(draft))
                    local.mkdir(parents=True, exist_ok=True)
                    draft.replace(local / name)
        return super()._load(stage)

    def share(self, stage: Stage) -> dict:
        """Put a stage that has run into the remote: outputs first, then the entry of the run cache; returns its record.

        Raises:
            DvcException: the remote cannot be written.
        """
        self.save(stage)  # should the remote fail, this machine still knows
        record = self.offer(stage)
        if _can_hash(stage):
            key, value = _get_stage_hash(stage), _get_cache_hash(record["lock"])
            with _reached():
                remote, folder = self._runs(key)
                target = remote.fs.join(folder, value)
                if not remote.fs.exists(target):
                    remote.fs.makedirs(folder, exist_ok=True)
                    remote.fs.put_file(self._get_cache_path(key, value), target)
        return record

    def offer(self, stage: Stage) -> dict:
        """Put the outputs of a stage into the remote, also those that git keeps; returns its record."""
        record = {"lock": to_single_stage_lockfile(stage), "folder": os.path.relpath(stage.wdir, self.repo.root_dir)}
        twin = self._twin(record)
        with self._cache_type_copy():
            for out in twin.outs:
                if out.changed_cache():
                    out.commit()
        with _reached():
            failed = [self.repo.cloud.push(objects).failed for objects in twin.get_used_objs().values()]
        if any(failed):
            raise DvcException(f"the DVC remote did not take the outputs of {stage.addressing}; is there room?")
        return record

    def place(self, record: Mapping) -> None:
        """Fetch the outputs that a record names, and put them where they belong, in the place of what is there."""
        twin = self._twin(record)
        with _reached():
            for objects in twin.get_used_objs().values():
                self.repo.cloud.pull(objects)
        if not twin.outs_cached():
            names = ", ".join(out.def_path for out in twin.outs if out.changed_cache())
            raise DvcException(f"the DVC remote does not have {names}; was it cleaned in the meantime?")
        twin.checkout(force=True)

    def _twin(self, record: Mapping) -> Stage:
        """A stage with the outputs of a record, all of them kept in DVC's cache."""
        return self._create_stage(record["lock"], wdir=os.path.join(self.repo.root_dir, record["folder"]))

    def _runs(self, key: str):
        """The remote's place for run cache entries of a key, as DVC lays it out."""
        remote = self.repo.cloud.get_remote_odb(None, "reproduce", hash_name="md5-dos2unix")
        return remote, remote.fs.join(remote.path, "runs", key[:2], key)


@contextmanager
def _reached() -> Iterator[None]:
    """Whatever keeps a remote from being used is one sentence: each kind of remote has exceptions of its own."""
    try:
        yield
    except DvcException:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DvcException(f"the DVC remote cannot be used ({reason}); mend that and run it again to go on") from error


def visit_in_clone() -> None:
    """Run one stage in this folder, a clone on another machine, for a request in the file named by the first argument.

    Its inputs come from the remote and its outputs go there; the record goes to the file named by the second argument.
    """
    request = json.loads(Path(sys.argv[1]).read_text())
    try:
        repo, shared = _open(request["remote"])
        with repo.lock, repo.scm_context(quiet=True):
            for record in request["inputs"]:
                shared.place(record)
            # A stage object that has hashed its dependencies takes them for those of its lock: hence two.
            asked, stage = (repo.stage.collect(request["name"])[0] for _ in range(2))
            asked.save_deps()
            if different := _differences(request["given"], _given(asked)):
                raise UserError(
                    f"{os.getcwd()} on {os.uname().nodename} differs in {', '.join(different)} (commit "
                    f"{_commit(repo.root_dir)}, asked for {request['commit']}); bring all clones to the same commit"
                )
            _reproduce(stage, shared)
            record = shared.share(stage)
    except StageCmdFailedError as error:  # the command itself has said why
        sys.exit(f"{error}")
    except (DvcException, UserError) as error:
        sys.exit(f"error: {error}")
    Path(sys.argv[2]).write_text(json.dumps(record))


def _open(remote: str | None) -> tuple[Repo, SharedRuns | None]:
    """DVC's view of this folder, with what is shared through a remote, if one is named."""
    tqdm.monitor_interval = 0  # a thread behind DVC's progress bars; threads do not survive a fork
    repo = Repo(_wait_for_lock=True, config={"core": {"remote": remote}} if remote else None)
    if isinstance(repo.lock, Lock):
        repo.lock = _PromptLock(repo.lock.lockfile)
    if remote is None:
        return repo, None
    if remote not in repo.config["remote"]:
        raise UserError(
            f"DVC knows no remote {remote} here; add it: dvc remote add {remote} FOLDER or s3://BUCKET/PATH"
        )
    repo.stage_cache = SharedRuns(repo)
    return repo, repo.stage_cache


def _reproduce(stage: Stage, shared: SharedRuns | None) -> bool:
    """Bring a stage up to date; says whether it was not."""
    if shared is None:
        return bool(stage.reproduce())
    changed = stage.changed()
    if changed:
        # Not `reproduce`, which before that pulls by dvc.lock and takes the lock that is held here.
        stage.run(pull=True)
    return changed


def _given(stage: Stage) -> dict:
    """Command, dependencies and parameters of a stage whose dependencies are hashed, as dvc.lock has them."""
    record = to_single_stage_lockfile(stage)
    return json.loads(json.dumps({key: record.get(key) for key in ("cmd", "deps", "params")}, default=str))


def _differences(ours: Mapping, theirs: Mapping) -> list[str]:
    """Names of the dependencies and parameters of one stage that are not the same on two machines."""
    flat = []
    for given in (ours, theirs):
        parts = {dep["path"]: {**dep, "path": None} for dep in given["deps"] or ()}
        for values in (given["params"] or {}).values():
            parts |= values
        flat.append(parts | {"its command": given["cmd"]})
    first, second = flat
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


def _commit(folder: str | Path) -> str:
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def _drop_torn(locks: Path) -> None:
    """Remove DVC's list of files in use if a kill left half of it: it would refuse to work until somebody did."""
    try:
        json.loads(locks.read_text() if locks.exists() else "{}")
    except ValueError:
        locks.unlink()
