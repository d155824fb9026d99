"""Scales: the one whose folder this is, and those whose results were published beside it.

Each scale keeps its results in its own folder and DVC pipeline, so that reproducing one never starts another. To appear
in the report of all, a scale is *published*: ``bitdistiller publish`` in its folder copies what its studies found, and
its parameters, into ``reports/scales/NAME``, small files that belong to git. A report shows its own scale and every
published one, in columns and sections of their own; numbers of two scales never share one.
"""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bitdistiller.analysis.record import RunSummary, StudyReport
from bitdistiller.config import Params, load_params
from bitdistiller.errors import UserError
from bitdistiller.report.tables import PAPER
from bitdistiller.results import Record

SCALES = Path("reports") / "scales"
_STAGES = {  # by section of the parameters
    "runs": ("train", "evaluate"),
    "baselines": ("baseline",),
    "ptq": ("ptq",),
    "peers": ("peer", "peer_scores"),
    "reasoning": ("reason",),
}


class ScaleRecord(Record):
    """What is published of a scale besides its studies: its name, and its folder from the root of the project."""

    name: str
    folder: str


@dataclass(frozen=True)
class Scale:
    """A scale as the report shows it.

    Attributes:
        folder: where it is reproduced, from the root of the project.
        parameters: its parameter file as it stands.
        path: folder of its studies' records, from here.
        lock: its dvc.lock, from here.
    """

    name: str
    folder: str
    reports: list[StudyReport]
    params: Params
    parameters: str
    path: Path
    lock: Path

    @property
    def slug(self) -> str:
        """The name as part of a file's name."""
        return "-".join("".join(sign if sign.isalnum() else " " for sign in self.name).split())

    @property
    def comparable(self) -> bool:
        """Whether absolute numbers may be compared with the papers'."""
        return self.name == PAPER

    def runs(self) -> dict[str, RunSummary]:
        """Every run of its studies, once."""
        return {summary.run: summary for report in self.reports for summary in report.runs}

    @property
    def origins(self) -> list[str]:
        """What the full-precision weights are that its numbers are about."""
        return origins(self.reports)

    @property
    def seeds(self) -> str:
        """How many its students have: ``one seed``, ``3 seeds`` or ``1 to 3 seeds``; empty where none is trained."""
        by_study = [Counter(run.condition for run in report.runs if run.training) for report in self.reports]
        counts = {seeds for conditions in by_study for seeds in conditions.values()}
        if len(counts) > 1:
            return f"{min(counts)} to {max(counts)} seeds"
        return "".join("one seed" if count == 1 else f"{count} seeds" for count in counts)

    def stages(self, run: str) -> list[str]:
        """The pipeline's stages that make a run and its scores."""
        return [
            f"{stage}@{run}"
            for section, stages in _STAGES.items()
            if run in getattr(self.params, section)
            for stage in stages
        ]

    def report(self, study: str) -> StudyReport | None:
        """What a study found at this scale, if it was computed."""
        return next((report for report in self.reports if report.name == study), None)


def originals(reports: Sequence[StudyReport]) -> dict[str, str]:
    """By model: the sentence that says what its full-precision weights are."""
    return {
        run.model: run.origin
        for report in reports
        for run in report.runs
        if any(run.run in names for names in report.params["full"].values())
    }


def origins(reports: Sequence[StudyReport]) -> list[str]:
    """What full-precision weights are; models of which the same is said share a sentence."""
    alike: dict[str, list[str]] = {}
    for model, origin in sorted(originals(reports).items()):
        said = origin.removeprefix(model)
        alike.setdefault(said, []).append("" if said == origin else model)
    return [", ".join(filter(None, models)) + said for said, models in alike.items()]


def own_scale(params: Params, params_file: Path, results_dir: Path) -> Scale:
    """The scale of a parameter file; all its studies must have been computed.

    Raises:
        UserError: a study has not been computed yet, or its file is foreign.
    """
    reports = [StudyReport.read(results_dir / "studies" / f"{name}.json") for name in params.studies]
    folder = results_dir.absolute().parent
    text, place = params_file.read_text(), _from_root(folder, params)
    return Scale(params.scale, place, reports, params, text, results_dir / "studies", results_dir.parent / "dvc.lock")


def all_scales(params: Params, params_file: Path, results_dir: Path) -> list[Scale]:
    """The own scale, then the published ones in alphabetical order.

    Raises:
        UserError: a study of the own scale has not been computed yet, or a file is foreign.
    """
    own = own_scale(params, params_file, results_dir)
    records = sorted((Path(params.root) / SCALES).glob("*/scale.json"))
    others = [_published(record, Path(params.root)) for record in records]
    return [own, *(scale for scale in others if scale.name != own.name)]


def _published(record: Path, root: Path) -> Scale:
    folder = record.parent
    about, params = ScaleRecord.read(record), load_params(folder / "params.yaml")
    files = [file for name in params.studies if (file := folder / "studies" / f"{name}.json").exists()]
    reports, text = [StudyReport.read(file) for file in files], (folder / "params.yaml").read_text()
    return Scale(about.name, about.folder, reports, params, text, folder / "studies", root / about.folder / "dvc.lock")


def publish(params_file: Path, results_dir: Path) -> Path:
    """Copy what the studies of a scale found into ``reports/scales``; those not computed yet are left out.

    Returns:
        The folder that was written, in place of what was published of that scale before.

    Raises:
        UserError: no study was computed, or a file is foreign.
    """
    params = load_params(params_file)
    there = [name for name in params.studies if (results_dir / "studies" / f"{name}.json").exists()]
    if not there:
        raise UserError(f"{results_dir / 'studies'} has no study of {params_file}; run `bitdistiller reproduce` first")
    computed = params.model_copy(update={"studies": {name: params.studies[name] for name in there}})
    scale = own_scale(computed, params_file, results_dir)
    folder = Path(params.root) / SCALES / scale.slug
    shutil.rmtree(folder, ignore_errors=True)
    ScaleRecord(name=scale.name, folder=scale.folder).write(folder / "scale.json")
    shutil.copy(params_file, folder / "params.yaml")
    for report in scale.reports:
        report.write(folder / "studies" / f"{report.name}.json")
    return folder


def _from_root(folder: Path, params: Params) -> str:
    root = (folder / params.root).resolve()
    return str(folder.resolve().relative_to(root)) if folder.resolve().is_relative_to(root) else "."
