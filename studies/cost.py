"""What distillation costs: tokens, time, energy and memory of every run, and what a small budget buys.

BitDistiller trains on little data in a few GPU hours. Hours of a GPU cannot be compared with those of a processor, and
samples not with samples of another length; what can be asked here is whether a small budget suffices. *little-data*:
of the perplexity that rounding to 2 bits costs (on the logarithm, RTN against full precision), distillation on the
run's few hundred thousand tokens wins back more than half. Costs themselves stand in the table, measured, and claim
nothing.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from bitdistiller.analysis.compare import Quantity, above, all_of
from bitdistiller.analysis.power import Design
from bitdistiller.analysis.published import BITDISTILLER, read_published
from bitdistiller.analysis.record import StudyReport
from bitdistiller.analysis.rows import frame, measured_rows
from bitdistiller.analysis.stats import PERPLEXITY_ITEMS, log_perplexity
from bitdistiller.analysis.study import ComparedRuns, Results
from bitdistiller.analysis.verdict import Claim, Finding, undefined

if TYPE_CHECKING:
    from bitdistiller.report.drawing import Drawing

QUESTION = "How much data, time and memory does distillation take, and what does that buy?"
SOURCE = f"{BITDISTILLER}, its comparison of training costs"
TABLE = "bitdistiller_cost.csv"

RTN, STUDENT = "RTN, 2 bits", "BitDistiller, 2 bits"
COST = "cost"  # the task of what runs cost


class Params(ComparedRuns):
    """Any runs; the claim needs a rounded model and a student."""

    required = (RTN, STUDENT)


def recovered(results: Results) -> Quantity | Finding:
    """Share of the log perplexity lost by rounding that training wins back; its error is the delta method's."""
    name, full = "share of the lost log perplexity won back", results.full_of(STUDENT)
    rounded, student, original = (
        results.panel(condition, PERPLEXITY_ITEMS, [results.perplexity_task]) for condition in (RTN, STUDENT, full)
    )
    lost = log_perplexity([rounded, original], [1, -1])
    if lost.low <= 0:
        return undefined(name, "share", lost.n, lost.seeds)
    share = log_perplexity([rounded, student], [1, -1]).value / lost.value
    coefficients = [(1 - share) / lost.value, -1 / lost.value, share / lost.value]
    return Quantity(name, replace(log_perplexity([rounded, student, original], coefficients), value=share), "share")


def table(results: Results) -> pd.DataFrame:
    """Scores and costs of every condition, and the published costs."""
    rows = measured_rows(results, dict.fromkeys(results.params.conditions()))
    return frame([*rows, *_costs(results), *_printed(results.published)])


def _costs(results: Results) -> Iterator[dict]:
    """Mean cost over the seeds of each trained condition."""
    for condition in results.params.conditions():
        trained = [result.training for result in results.of(condition) if result.training]
        if not trained:
            continue
        values = {
            "tokens": [run.tokens for run in trained],
            "seconds": [run.cost.seconds for run in trained],
            "peak_gib": [run.cost.peak_bytes / 2**30 for run in trained],
            "joules": [run.cost.joules for run in trained if run.cost.joules is not None],
        }
        common = {"kind": "mean", "source": "measured", "model": results.of(condition)[0].scores.model}
        for metric, of_seeds in values.items():
            if of_seeds:
                value = sum(of_seeds) / len(of_seeds)
                yield common | {"condition": condition, "task": COST, "metric": metric, "value": value}


def _printed(folder: Path) -> Iterator[dict]:
    for line in read_published(folder, TABLE).to_dict("records"):
        common = {"kind": "published", "source": TABLE, "model": line["model"], "condition": line["method"]}
        for column in ("training_samples", "gpu_hours"):
            if pd.notna(line[column]):
                yield common | {"task": COST, "metric": column, "value": float(line[column])}


DESIGN = Design(disagreement=0.1, spread=0.1)
CLAIMS = (
    Claim(
        id="little-data",
        sentence="A small budget suffices: at 2 bits distillation wins back most of the perplexity lost by rounding.",
        source=SOURCE,
        test=all_of(above(recovered, 0.5)),
    ),
)


def figures(report: StudyReport) -> dict[str, "Drawing"]:
    """Seconds and memory of training, for every condition."""
    from bitdistiller.report.figures import conditions_panel

    rows = report.frame()
    return {
        "seconds": conditions_panel(rows, "seconds", COST, "seconds of training", "Wall time of training."),
        "memory": conditions_panel(
            rows, "peak_gib", COST, "GiB", "Greatest resident memory of the training process, the software included."
        ),
    }
