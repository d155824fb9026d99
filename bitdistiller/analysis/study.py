"""The contract of a study, and the stage that computes one.

A study is one file in ``studies/`` that answers one question from the results of several runs. It exposes

    QUESTION   the question, one sentence
    SOURCE     papers, sections and tables it comes from
    Params     a ``StudyParams``: which runs take part under which condition (its part of ``params.yaml``)
    CLAIMS     the claims it decides
    DESIGN     what it assumed before the runs, from which follows the smallest effect that it can detect

and may expose

    table      results -> tidy DataFrame with the columns of ``record.Row``, measured beside published (``rows``)
    figures    StudyReport -> {name: Drawing}; it imports what draws when it is called

Computing and drawing are separate: ``run_study`` reads runs and writes ``results/studies/NAME.json``; ``figures`` gets
that record and nothing else. A changed look therefore computes nothing again, and a figure cannot show a number that
is not in the file. The record holds no time and no commit of its own, so that computing it twice gives the same bytes;
the runs inside carry theirs. Trained runs belong to no study: two studies that name the same run share it.
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field, ValidationError, model_validator

from bitdistiller.analysis.power import Design, Detectable, detectable
from bitdistiller.analysis.record import ReasoningSummary, Row, RunSummary, StudyReport
from bitdistiller.analysis.stats import PERPLEXITY_ITEMS, Panel, panel
from bitdistiller.analysis.verdict import Claim, JudgedClaim, family_wise
from bitdistiller.config import EvaluationParams, Params, Section, TaskParams, entry
from bitdistiller.errors import UserError
from bitdistiller.results import (
    RunScores,
    TeacherRecord,
    TrainingRecord,
    read_items,
)

if TYPE_CHECKING:
    from bitdistiller.report.drawing import Drawing


Runs = Annotated[list[str], Field(min_length=1)]  # copies of one condition, a seed each


class StudyParams(Section):
    """Base of a study's parameters.

    Attributes:
        perplexity: the evaluation whose perplexity is judged; may be left out when there is only one.
        full: full-precision originals by their label; each student is compared with that of its model.
        teachers: entries of ``data`` whose records the study reads.
        reasoning: whether it reads what is scored under ``reasoning`` too (MMLU, GSM8K, HumanEval).
    """

    reasoning: ClassVar[bool] = False
    perplexity: str | None = None
    full: dict[str, Runs] = Field(min_length=1)
    teachers: list[str] = []

    def students(self) -> dict[str, list[str]]:
        """Runs of every other condition, by its label."""
        raise NotImplementedError

    def conditions(self) -> dict[str, list[str]]:
        """Runs of each condition, by its label, in the order of tables and legends; several runs are seeds."""
        return self.full | self.students()


class ComparedRuns(StudyParams):
    """Conditions without an order of their own: what most studies compare.

    Attributes:
        runs: runs by the label of their condition.
        required: labels that the study's claims name.
    """

    runs: dict[str, Runs]
    required: ClassVar[tuple[str, ...]] = ()

    def students(self) -> dict[str, list[str]]:
        return self.runs

    @model_validator(mode="after")
    def _conditions_complete(self) -> "ComparedRuns":
        if missing := [label for label in self.required if label not in self.runs]:
            raise ValueError(f"runs lacks {', '.join(missing)}; the study's claims need them")
        if both := sorted(set(self.runs) & set(self.full)):
            raise ValueError(f"{', '.join(both)} is both under full and under runs; labels must differ")
        return self


@dataclass(frozen=True)
class RunResult:
    """One run's files, read and checked against each other.

    ``reasoning`` are its scores on MMLU, GSM8K and HumanEval, where the study asks for them; their items are among
    ``items``.
    """

    scores: RunScores
    items: pd.DataFrame
    training: TrainingRecord | None
    reasoning: RunScores | None = None


@dataclass(frozen=True)
class Results:
    """What a study's table and claims are computed from."""

    params: StudyParams
    runs: dict[str, RunResult]
    published: Path
    teachers: dict[str, TeacherRecord] = field(default_factory=dict)
    _panels: dict[tuple, Panel] = field(default_factory=dict, repr=False, compare=False)

    def of(self, condition: str) -> list[RunResult]:
        """The runs of one condition, one a seed."""
        return [self.runs[name] for name in entry(self.params.conditions(), "the study's conditions", condition)]

    def panel(self, condition: str, metric: str, tasks: Sequence[str] | None = None) -> Panel:
        """Aligned per-item results of one condition (``stats.panel``), read off the tables once."""
        key = (condition, metric, None if tasks is None else tuple(tasks))
        if key not in self._panels:
            self._panels[key] = panel([result.items for result in self.of(condition)], metric, tasks)
        return self._panels[key]

    def full_of(self, condition: str) -> str:
        """Label of the full-precision original that a condition is compared with: the one of the same model.

        Raises:
            UserError: the study's ``full`` has none.
        """
        model = self.of(condition)[0].scores.model
        for label in self.params.full:
            if self.of(label)[0].scores.model == model:
                return label
        raise UserError(f"the study's key full has no run of {model}, with which {condition} is to be compared")

    @cached_property
    def perplexity_task(self) -> str:
        """The evaluation whose perplexity a study judges: the one it names, or the only one there is."""
        return self.text(self.params.perplexity)

    def text(self, wanted: str | None) -> str:
        """The evaluation of a text by its name, or the only one there is.

        Raises:
            UserError: there is no such evaluation, or there are several and none was named.
        """
        scores = next(iter(self.runs.values())).scores.scores
        there = [score.task for score in scores if score.metric == "perplexity"]
        if wanted in there or (wanted is None and len(there) == 1):
            return wanted or there[0]
        raise UserError(f"the study's key perplexity must name one of {', '.join(there) or 'none'}, not {wanted}")

    @cached_property
    def chance(self) -> dict[str, float]:
        """Chance level of every task scored by ``acc``."""
        scores = next(iter(self.runs.values())).scores.scores
        return {score.task: score.chance for score in scores if score.metric == "acc"}


@dataclass(frozen=True)
class Study:
    """A loaded study file."""

    name: str
    question: str
    source: str
    params: type[StudyParams]
    table: Callable[[Results], pd.DataFrame]
    figures: Callable[[StudyReport], dict[str, "Drawing"]] | None
    claims: tuple[Claim, ...]
    design: Design

    def comparisons(self, results: Results) -> int:
        """How many comparisons decide the claims, by what there is to compare; Holm's method corrects them together."""
        stated = self.design.comparisons
        if stated is None:
            return sum(claim.test.deciding for claim in self.claims)
        return stated(results) if callable(stated) else stated

    def detectable(self, results: Results, evaluation: EvaluationParams) -> Detectable:
        """Smallest effects that the design detects; of claims of no difference, the smallest margins too."""
        return detectable(
            evaluation,
            self.design.disagreement,
            self.design.spread,
            perplexity=results.params.perplexity,
            comparisons=self.comparisons(results),
            margins=any(getattr(claim.test, "margin", False) for claim in self.claims),
        )


_CONTRACT = ("QUESTION", "SOURCE", "Params", "CLAIMS", "DESIGN")


def studies_dir(params: Params) -> Path:
    """Folder of study files."""
    return Path(params.root) / "studies"


def published_dir(params: Params) -> Path:
    """Folder of published tables."""
    return Path(params.root) / "reports" / "published"


def study_names(folder: Path) -> list[str]:
    """Names of the studies in a folder."""
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def load_study(name: str, folder: Path) -> Study:
    """Load ``folder/NAME.py`` and check that it keeps the contract.

    Raises:
        UserError: there is no such file (the error lists the studies there are), or a name is missing in it.
    """
    if name not in study_names(folder):
        raise UserError(f"there is no study {name!r}; {folder} has {', '.join(study_names(folder)) or 'none'}")
    module = _import(name, folder / f"{name}.py")
    if missing := [part for part in _CONTRACT if not hasattr(module, part)]:
        raise UserError(f"{folder / name}.py is not a study yet: it lacks {', '.join(missing)}")
    claims = tuple(module.CLAIMS)
    if len({claim.id for claim in claims}) < len(claims):
        raise UserError(f"{folder / name}.py has two claims of the same id")
    if module.DESIGN.comparisons is None and (own := [c.id for c in claims if not hasattr(c.test, "deciding")]):
        raise UserError(
            f"{folder / name}.py: the comparisons of {', '.join(own)} cannot be counted, since its test was not made "
            f"by all_of; give DESIGN the number of all comparisons that decide claims, as Design(comparisons=...)"
        )
    return Study(
        name=name,
        question=module.QUESTION,
        source=module.SOURCE,
        params=module.Params,
        table=getattr(module, "table", None) or _default_table(),
        figures=getattr(module, "figures", None),
        claims=claims,
        design=module.DESIGN,
    )


def _default_table() -> Callable[[Results], pd.DataFrame]:
    from bitdistiller.analysis.rows import comparison_table  # which is built on this module

    return comparison_table()


def _import(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"studies.{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def study_params(study: Study, params: Params) -> StudyParams:
    """The study's part of ``params.yaml``, checked; every run it names must be a run or a baseline there.

    Raises:
        UserError: the study has no part, a value does not fit, or a run is unknown (the error names the key).
    """
    section = entry(params.studies, "studies", study.name)
    try:
        chosen = study.params.model_validate(section)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in ("studies", study.name, *first["loc"]))
        raise UserError(f"key {where}: {first['msg']}") from None
    for condition, runs in chosen.conditions().items():
        if not runs:
            raise UserError(f"studies.{study.name} has no runs for {condition}")
        if unknown := [run for run in runs if run not in params.scored]:
            raise UserError(f"studies.{study.name} names {', '.join(unknown)}, not found in runs, baselines or ptq")
    if chosen.reasoning:
        _require_reasoning(study.name, chosen, params)
    for name in chosen.teachers:
        entry(params.data, f"data, which studies.{study.name}.teachers names,", name)
    return chosen


def _require_reasoning(name: str, chosen: StudyParams, params: Params) -> None:
    for run in (run for runs in chosen.conditions().values() for run in runs):
        asked = params.reasoning.get(run)
        if asked is None or None in (asked.mmlu, asked.gsm8k, asked.humaneval) or 1 not in asked.humaneval.k:
            raise UserError(
                f"studies.{name} reads MMLU, GSM8K and pass@1 on HumanEval of {run}; "
                f"ask for all three in reasoning.{run}"
            )


def _evaluation(chosen: StudyParams, params: Params) -> EvaluationParams:
    """What decides how small an effect a study can see; of benchmarks of reasoning, the one with the fewest items."""
    if not chosen.reasoning:
        return params.evaluation
    runs = [params.reasoning[run] for runs in chosen.conditions().values() for run in runs]
    smallest = min(min(57 * asked.mmlu.limit, asked.gsm8k.limit, asked.humaneval.limit) for asked in runs)
    return params.evaluation.model_copy(update={"tasks": {"smallest": TaskParams(limit=smallest, shots=0)}})


def load_results(chosen: StudyParams, results_dir: Path, published: Path) -> Results:
    """Read the runs that a study names.

    Raises:
        UserError: a file is missing or foreign, or a run's scores and items disagree.
    """
    names = dict.fromkeys(name for runs in chosen.conditions().values() for name in runs)
    teachers = {name: TeacherRecord.read(results_dir / "teachers" / f"{name}.json") for name in chosen.teachers}
    runs = {name: load_run(results_dir / "runs" / name, chosen.reasoning) for name in names}
    return Results(chosen, runs, published, teachers)


def load_run(folder: Path, reasoning: bool = False) -> RunResult:
    """Read one run's folder; a baseline has no ``train.json``.

    Args:
        reasoning: whether to read its scores on MMLU, GSM8K and HumanEval too.
    """
    (scores, items), training = _read_scores(folder), folder / "train.json"
    result = RunResult(scores, items, TrainingRecord.read(training) if training.exists() else None)
    if not reasoning:
        return result
    more, more_items = _read_scores(folder / "reasoning")
    if more.model_sha256 != scores.model_sha256:
        raise UserError(f"{folder}: scores.json and reasoning/scores.json are of different weights; score it again")
    return replace(result, reasoning=more, items=pd.concat([items, more_items], ignore_index=True))


def _read_scores(folder: Path) -> tuple[RunScores, pd.DataFrame]:
    scores, items = RunScores.read(folder / "scores.json"), read_items(folder / "items.csv")
    for score in scores.scores:
        _check_score(score, items, folder)
    return scores, items


def _check_score(score, items: pd.DataFrame, folder: Path) -> None:
    perplexity = score.metric == "perplexity"
    values = panel([items], PERPLEXITY_ITEMS if perplexity else score.metric, [score.task])
    found = values.values.sum() / values.weights.sum()
    stated = np.log(score.value) if perplexity else score.value
    if not abs(found - stated) <= 1e-3 * max(1.0, abs(stated)):
        raise UserError(
            f"{folder}: scores.json says {score.metric} {score.value:.6g} on {score.task}, items.csv gives "
            f"{np.exp(found) if perplexity else found:.6g}; score the run again"
        )


def run_study(name: str, params: Params, results_dir: Path) -> StudyReport:
    """Compute a study from its runs and write ``results_dir/studies/NAME.json``."""
    study = load_study(name, studies_dir(params))
    chosen = study_params(study, params)
    results = load_results(chosen, results_dir, published_dir(params))
    report = StudyReport(
        name=name,
        question=study.question,
        source=study.source,
        scale=params.scale,
        params=chosen.model_dump(mode="json"),
        chance=results.chance,
        detectable=study.detectable(results, _evaluation(chosen, params)),
        rows=_rows(study.table(results)),
        claims=family_wise([judge(claim, results) for claim in study.claims]),
        runs=_summaries(results),
    )
    report.write(results_dir / "studies" / f"{name}.json")
    return report


def judge(claim: Claim, results: Results) -> JudgedClaim:
    """Decide one claim."""
    return JudgedClaim(
        id=claim.id,
        sentence=claim.sentence,
        source=claim.source,
        published=claim.published(results.published),
        verdict=claim.test(results),
    )


def _rows(table: pd.DataFrame) -> list[Row]:
    plain = table.astype(object).where(table.notna(), None)
    return [Row(**row) for row in plain.to_dict("records")]


def _summaries(results: Results) -> list[RunSummary]:
    summaries = []
    for condition, names in results.params.conditions().items():
        for name in names:
            scores, training = results.runs[name].scores, results.runs[name].training
            shared = scores.model_dump(
                include={
                    "model",
                    "origin",
                    "bits",
                    "bits_per_weight",
                    "parameters",
                    "quantized_parameters",
                    "model_sha256",
                    "original_sha256",
                    "data",
                    "environment",
                    "weights",
                    "parameters_used",
                }
            )
            more = results.runs[name].reasoning
            made = more and ReasoningSummary.model_validate(
                more.model_dump(include={"parameters_used", "environment", "cost"})
            )
            summaries.append(
                RunSummary(
                    run=name, condition=condition, scoring=scores.cost, training=training, reasoning=made, **shared
                )
            )
    return summaries
