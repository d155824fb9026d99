"""The results of a folder or of a git revision, as far as they can be compared with others.

What was committed months ago has the schema of then. So nothing here is refused for a field too many or too few: of a
run its scores and cost are needed, of a study its verdicts, and all else may be missing. A revision is read through
``git archive`` into a temporary folder; the working tree is not touched.
"""

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from bitdistiller.analysis.verdict import Unit, format_effect
from bitdistiller.errors import UserError
from bitdistiller.results import read_items


class Excerpt(BaseModel):
    """A part of a stored record; what else is in the file is left out."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class ScoreExcerpt(Excerpt):
    task: str
    metric: str
    value: float
    standard_error: float
    n: int


class CostExcerpt(Excerpt):
    seconds: float
    peak_bytes: int


class Machine(Excerpt):
    machine: str = "an unknown machine"


class ScoresExcerpt(Excerpt):
    scores: list[ScoreExcerpt]
    cost: CostExcerpt
    parameters_used: dict = {}
    environment: Machine = Machine()


class TrainingExcerpt(Excerpt):
    cost: CostExcerpt


class VerdictExcerpt(Excerpt):
    outcome: str
    unit: Unit
    effect: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def text(self) -> str:
        """``supported, 1.8 points [0.4, 3.2]``."""
        if self.effect is None or self.low is None or self.high is None:
            return self.outcome
        low, high = (format_effect(bound, self.unit, bare=True) for bound in (self.low, self.high))
        return f"{self.outcome}, {format_effect(self.effect, self.unit)} [{low}, {high}]"


class ClaimExcerpt(Excerpt):
    id: str
    verdict: VerdictExcerpt


class StudyExcerpt(Excerpt):
    claims: list[ClaimExcerpt]


@dataclass(frozen=True)
class RunSnapshot:
    """One run: scores by task and metric, cost by stage, per-item results if they were kept."""

    scores: dict[tuple[str, str], ScoreExcerpt]
    costs: dict[str, CostExcerpt]
    parameters: dict
    machine: str
    items: pd.DataFrame | None


@dataclass(frozen=True)
class Snapshot:
    """All runs by name, and all verdicts by ``study/claim``."""

    name: str
    runs: dict[str, RunSnapshot]
    verdicts: dict[str, VerdictExcerpt]


_Record = TypeVar("_Record", bound=Excerpt)


def read_snapshot(spec: str) -> Snapshot:
    """Results of a scale's folder (which holds ``results/``) or of a git revision, ``REV`` or ``REV:FOLDER``.

    A folder of that name comes before a revision. A revision's ``FOLDER`` counts from the top of the repository; left
    out, it is the current folder.

    Raises:
        UserError: neither of the two, no results there, or a file that is no record of results.
    """
    if Path(spec).is_dir():
        return _read_folder(Path(spec), spec)
    with TemporaryDirectory() as folder:
        _extract(spec, Path(folder))
        return _read_folder(Path(folder), spec)


def _extract(spec: str, target: Path) -> None:
    """Unpack the ``results`` of a revision into a folder."""
    revision, colon, inside = spec.partition(":")
    commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if not revision or commit is None:
        raise UserError(f"{spec} is neither a folder nor a revision of the git repository here; name one of the two")
    top, prefix = _git("rev-parse", "--show-toplevel"), _git("rev-parse", "--show-prefix")
    path = os.path.normpath(inside or "." if colon else prefix.decode().strip() or ".")
    tree = commit.decode().strip() + ("" if path == "." else f":{path}")
    archive = _git("archive", "--format=tar", tree, "results", folder=top.decode().rstrip("\n"))
    if archive is None:
        raise UserError(f"revision {revision} has no results in {path}; name another folder, as in {revision}:FOLDER")
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        for member in filter(tarfile.TarInfo.isfile, files):  # a link could lead out of the folder
            path = target / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files.extractfile(member).read())


def _git(*arguments: str, folder: str | None = None) -> bytes | None:
    """What git prints; None if it fails or is not installed."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def _read_folder(folder: Path, spec: str) -> Snapshot:
    runs = sorted(folder.glob("results/runs/*/scores.json"))
    if not runs:
        raise UserError(
            f"{spec} has no results/runs/*/scores.json; name the folder of a scale, or run `dvc repro` there"
        )
    verdicts = {
        f"{path.stem}/{claim.id}": claim.verdict
        for path in sorted(folder.glob("results/studies/*.json"))
        for claim in _read(StudyExcerpt, path, folder, spec).claims
    }
    return Snapshot(spec, {path.parent.name: _read_run(path.parent, folder, spec) for path in runs}, verdicts)


def _read_run(run: Path, folder: Path, spec: str) -> RunSnapshot:
    scores = _read(ScoresExcerpt, run / "scores.json", folder, spec)
    costs = {"scoring": scores.cost}
    if (run / "train.json").exists():
        costs["training"] = _read(TrainingExcerpt, run / "train.json", folder, spec).cost
    found, parameters = list(scores.scores), dict(_flat(scores.parameters_used))
    if (run / "reasoning" / "scores.json").exists():
        more = _read(ScoresExcerpt, run / "reasoning" / "scores.json", folder, spec)
        found += more.scores
        costs["reasoning"] = more.cost
        parameters |= dict(_flat(more.parameters_used))
    items = [read_items(path) for path in (run / "items.csv", run / "reasoning" / "items.csv") if path.exists()]
    return RunSnapshot(
        scores={(score.task, score.metric): score for score in found},
        costs=costs,
        parameters=parameters,
        machine=scores.environment.machine,
        items=pd.concat(items, ignore_index=True) if items else None,
    )


def _read(record: type[_Record], path: Path, folder: Path, spec: str) -> _Record:
    try:
        return record.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"{spec}: {path.relative_to(folder)} cannot be compared; {where}: {first['msg']}") from None


def _flat(value: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Nested parameters as ``section.key``."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
