"""The tables of a study: which numbers stand in which row and column.

Every table is a frame of cells (``cells``); ``study_tables`` names all of a study, and the names are those of the files
in ``reports/tables``. In a table that puts measured beside published, each model has rows of its own under a heading
that says which of the two it is, so that a number cannot be read as the other kind.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from bitdistiller.analysis.published import paper_of
from bitdistiller.analysis.record import Row, StudyReport
from bitdistiller.analysis.rows import MEAN
from bitdistiller.analysis.verdict import JudgedClaim, PublishedNumber, format_effect
from bitdistiller.report.cells import BENCHMARKS, EMPTY, INTERVALS, QUANTITIES, Cell, Link, mark_best, number, plain
from bitdistiller.results import TrainingRecord

BESIDE = ("perplexity", "acc", "retention", "retention_above_chance")  # what papers print against bits
SUBJECTS = "mmlu/"  # begins the tasks that are parts of MMLU
SYMBOLS = {"supported": "✓", "contradicted": "✗", "undecided": "?"}
PAPER = "paper"  # the scale whose absolute numbers may be compared with the papers'
# What the column p of ``comparisons`` holds.
P_VALUES = (
    "p of a row that decides is Holm-adjusted over the study and against the bound that it claims, two-sided or, of an "
    "effect within a claimed margin, by two one-sided tests; p of a row beside the claim is unadjusted, two-sided and "
    "against zero (of a ratio: one)"
)
NOT_COMPARABLE = "; not comparable with the papers' absolute numbers"


class Table(NamedTuple):
    """A frame of cells under its title."""

    title: str
    frame: pd.DataFrame


def study_tables(report: StudyReport) -> dict[str, Table]:
    """All tables of numbers of a study by the names of their files."""
    note = "" if report.scale == PAPER else NOT_COMPARABLE
    printed = printed_by_condition(report)
    tables = {report.name: Table(f"Measured, {INTERVALS}{note}", by_condition(report))}
    if not printed.empty and any(row.level is not None for row in report.rows):
        for metric, frame in beside(report).items():
            title = f"{QUANTITIES[metric]}, measured beside published{note}"
            tables[f"{report.name}-{metric}"] = Table(title, frame)
    elif not printed.empty:
        tables[f"{report.name}-published"] = Table("As the papers print it: other models, other data", printed)
    if not (scored := by_benchmark(report)).empty:
        tables[f"{report.name}-benchmarks"] = Table(f"Knowledge, reasoning and code, {INTERVALS}{note}", scored)
    if not (subjects := by_subject(report)).empty:
        title = f"MMLU by category and subject, accuracy, %, {INTERVALS}{note}"
        tables[f"{report.name}-subjects"] = Table(title, subjects)
    if len(report.chance) > 1:
        title = f"Accuracy of every task, %, measured here, {INTERVALS}{note}"
        tables[f"{report.name}-tasks"] = Table(title, by_task(report))
    return tables


def beside(report: StudyReport) -> dict[str, pd.DataFrame]:
    """Measured beside published, a table per metric of ``BESIDE``: a row per model, a column per condition.

    Measured cells carry their 95 % intervals; the papers print none for averages.
    """
    rows = [row for row in report.rows if row.kind != "run" and (row.task == MEAN or row.metric == "perplexity")]
    conditions = list(dict.fromkeys(row.condition for row in rows))
    found = {metric: [row for row in rows if row.metric == metric] for metric in BESIDE}
    return {metric: _beside(chosen, conditions) for metric, chosen in found.items() if chosen}


def _beside(rows: Sequence[Row], conditions: list[str]) -> pd.DataFrame:
    lines: dict[tuple[str, str], dict[str, Cell]] = {}
    for row in rows:
        measured = row.kind == "mean"
        name = row.model if measured else f"{row.model} ({paper_of(row.source)})"
        lines.setdefault(("measured here" if measured else "published", name), {})[row.condition] = Cell(row)
    table = _frame(lines, conditions, conditions)
    table.index = pd.MultiIndex.from_tuples(lines)
    return table


def _frame(lines: dict, keys: Sequence[str | tuple[str, str]], columns: Sequence[str]) -> pd.DataFrame:
    cells = [[line.get(key, EMPTY) for key in keys] for line in lines.values()]
    return pd.DataFrame(cells, index=list(lines), columns=list(columns), dtype=object)


def by_condition(report: StudyReport) -> pd.DataFrame:
    """What was measured of every condition: a row each, a column per metric of ``QUANTITIES``, the best in bold."""
    rows = [(row.condition, _heading(row), row) for row in report.rows if row.kind == "mean"]
    return mark_best(_by_heading(rows), set(report.params["full"]))


def printed_by_condition(report: StudyReport) -> pd.DataFrame:
    """What the papers print for the conditions of a study: a row a model and condition; empty if they print nothing."""
    rows = [row for row in report.rows if row.kind == "published"]
    return _by_heading(
        [
            (
                f"{row.model} ({paper_of(row.source)}), {row.condition}",
                _heading(row) or BENCHMARKS.get((row.task, row.metric)),
                row,
            )
            for row in rows
        ]
    )


def _heading(row: Row) -> str | None:
    return None if row.metric == "acc" and row.task != MEAN else QUANTITIES.get(row.metric)


def _by_heading(rows: Sequence[tuple[str, str | None, Row]]) -> pd.DataFrame:
    """A row per name, a column per heading; what has none is left out."""
    lines: dict[str, dict[str, Cell]] = {}
    for name, heading, row in rows:
        if heading:
            lines.setdefault(name, {})[heading] = Cell(row)
    headings = list(dict.fromkeys(heading for _, heading, _ in rows if heading))
    return _frame(lines, headings, headings)


def by_benchmark(report: StudyReport) -> pd.DataFrame:
    """Scores on MMLU, GSM8K and HumanEval: a row a condition; empty where none were measured."""
    lines: dict[str, dict[tuple[str, str], Cell]] = {}
    for row in report.rows:
        if row.kind == "mean" and (row.task, row.metric) in BENCHMARKS:
            lines.setdefault(row.condition, {})[row.task, row.metric] = Cell(row)
    found = [key for key in BENCHMARKS if any(key in line for line in lines.values())]
    return mark_best(_frame(lines, found, [BENCHMARKS[key] for key in found]), set(report.params["full"]))


def by_subject(report: StudyReport) -> pd.DataFrame:
    """Accuracy on each category and subject of MMLU: a row each, a column a condition; empty without MMLU."""
    lines: dict[str, dict[str, Cell]] = {}
    for row in report.rows:
        if row.kind == "mean" and row.task.startswith(SUBJECTS):
            lines.setdefault(row.task.removeprefix(SUBJECTS).replace("_", " "), {})[row.condition] = Cell(row)
    conditions = list(dict.fromkeys(condition for line in lines.values() for condition in line))
    return _frame(lines, conditions, conditions)


def by_task(report: StudyReport) -> pd.DataFrame:
    """Measured accuracy of every task: a row per condition, the chance level first."""
    tasks = list(report.chance)
    lines: dict[str, dict] = {"chance": {task: number(value, "acc") for task, value in report.chance.items()}}
    for row in report.rows:
        if row.kind == "mean" and row.metric == "acc" and row.task != MEAN:
            lines.setdefault(row.condition, {})[row.task] = Cell(row)
    return mark_best(_frame(lines, tasks, tasks), set(report.params["full"]))


def verdicts(reports: Sequence[StudyReport]) -> pd.DataFrame:
    """One row a claim: outcome, sentence, effect with interval, and the papers' numbers of the same kind."""
    return pd.DataFrame(
        [
            {
                "verdict": f"{SYMBOLS[claim.verdict.outcome]} {claim.verdict.outcome}",
                "claim": claim.sentence,
                "measured effect [95 % interval]": f"{claim.verdict.description}: {claim.verdict.text}",
                "published": published_text(claim),
            }
            for report in reports
            for claim in report.claims
        ],
        index=[f"{report.name}/{claim.id}" for report in reports for claim in report.claims],
    )


def verdict_matrix(scales: Mapping[str, Sequence[StudyReport]]) -> pd.DataFrame:
    """Claims against scales: outcome and effect with its 95 % interval; empty where a scale does not judge a claim."""
    lines: dict[str, dict[str, str]] = {}
    for scale, reports in scales.items():
        for report in reports:
            for claim in report.claims:
                found = claim.verdict
                text = f"{SYMBOLS[found.outcome]} {found.outcome}: {found.text}"
                lines.setdefault(f"{report.name}/{claim.id}", {})[scale] = text
    return _frame(lines, list(scales), list(scales))


def published_text(claim: JudgedClaim) -> str:
    """``accuracy at 1 bit minus chance: TinyLlama-1.1B (follow-up) 0.6 points, ...``"""
    numbers = published_numbers(claim)
    return f"{numbers[0].description}: {', '.join(map(published_item, numbers))}" if numbers else EMPTY


def published_numbers(claim: JudgedClaim) -> list[PublishedNumber]:
    """The papers' numbers that are in the unit of the measured effect, and so can stand beside it."""
    return [number for number in claim.published if number.unit == claim.verdict.unit]


def published_item(number: PublishedNumber) -> str:
    """``TinyLlama-1.1B (follow-up) 0.6 points``."""
    return f"{number.model} ({paper_of(number.file)}) {format_effect(number.value, number.unit)}"


def comparisons(claim: JudgedClaim) -> pd.DataFrame:
    """The comparisons behind a verdict; empty when the verdict is one comparison itself."""
    parts = claim.verdict.parts
    return pd.DataFrame(
        [[p.text, probability(p.p), p.basis, p.outcome or "beside the claim", p.needs or EMPTY] for p in parts],
        columns=["effect [95 % interval]", "p", "interval over", "outcome", "would take"],
        index=[p.description for p in parts],
    )


def probability(p: float | None) -> str:
    """A p-value in three decimals."""
    return EMPTY if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def runs(report: StudyReport, page: Callable[[str], str] | None = None) -> pd.DataFrame:
    """One row a run: what it is, its size, and what training and scoring cost.

    Args:
        page: run -> address of its page, where there is one.
    """
    table = []
    for summary in report.runs:
        training = summary.training
        table.append(
            {
                "run": Link(summary.run, page(summary.run)) if page else summary.run,
                "condition": summary.condition,
                "bits a weight": f"{summary.bits_per_weight:.2f}",
                "quantized": f"{summary.quantized_parameters / summary.parameters:.0%}",
                "steps": f"{training.steps:,}" if training else EMPTY,
                "tokens": f"{training.tokens:,}" if training else EMPTY,
                "gamma": f"{training.gamma:.3f}" if training and training.gamma is not None else EMPTY,
                "last loss": f"{training.final_loss:.3f}" if training else EMPTY,
                "training": _training_time(training) if training else EMPTY,
                "scoring": duration(summary.scoring.seconds),
                "peak memory": memory(
                    max(c.peak_bytes for c in ([training.cost] if training else []) + [summary.scoring])
                ),
                "commit": commit(summary.environment),
            }
        )
    return plain(pd.DataFrame(table).set_index("run"))


def _training_time(training: TrainingRecord) -> str:
    """How long a run took; of one that was resumed, only what came after its checkpoint was timed."""
    since = f" from step {training.resumed_at}" if training.resumed_at else ""
    return duration(training.cost.seconds) + since


def commit(environment) -> str:
    """Abbreviated commit; ``+`` marks a tree with uncommitted changes."""
    return environment.commit[:10] + ("+" if environment.dirty else "")


def duration(seconds: float) -> str:
    """``41 s``, ``3 min 5 s`` or ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def memory(count: int) -> str:
    """Bytes as MiB or GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
