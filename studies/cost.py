"""What distillation costs: tokens, time, energy and memory of every run, and what a small budget buys.

BitDistiller trains on little data in a few GPU hours. Hours of a GPU cannot be compared with those of a processor, and
samples not with samples of another length; what can be asked here is whether a small budget suffices. *little-data*:
of the perplexity that rounding to 2 bits costs (on the logarithm, RTN against full precision), distillation on the
tokens of one run wins back more than half. A student starts from clipped weights, and clipping alone wins back a part;
where that condition is named, its share stands beside the claim, and what is above it training has added. Costs
themselves stand in tables, measured ones and printed ones apart, and claim nothing.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from bitdistiller.analysis.compare import Measure, Quantity, above, all_of, beside
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

RTN, CLIPPED, STUDENT = "RTN, 2 bits", "clipping, 2 bits", "BitDistiller, 2 bits"
COST = "cost"  # the task of what runs cost


class Params(ComparedRuns):
    """Any runs; the claim needs a rounded model and a student, and ``CLIPPED`` says what training adds."""

    required = (RTN, STUDENT)


def recovered(condition: str, by: str) -> Measure:
    """Share of the log perplexity lost by rounding that a condition wins back; its error is the delta method's."""

    def measure(results: Results) -> Quantity | Finding:
        name, full = f"share of the lost log perplexity won back by {by}", results.full_of(STUDENT)
        rounded, better, original = (
            results.panel(label, PERPLEXITY_ITEMS, [results.perplexity_task]) for label in (RTN, condition, full)
        )
        lost = log_perplexity([rounded, original], [1, -1])
        if lost.low <= 0:
            return undefined(name, "share", lost.n, lost.seeds)
        share = log_perplexity([rounded, better], [1, -1]).value / lost.value
        coefficients = [(1 - share) / lost.value, -1 / lost.value, share / lost.value]
        return Quantity(name, replace(log_perplexity([rounded, better, original], coefficients), value=share), "share")

    return measure


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
            "seconds": [run.cost.seconds for run in trained if not run.resumed_at],  # else only its last part is timed
            "peak_gib": [run.cost.peak_bytes / 2**30 for run in trained],
            "joules": [run.cost.joules for run in trained if run.cost.joules is not None],
        }
        common = {"kind": "mean", "source": "measured", "model": results.of(condition)[0].scores.model}
        for metric, of_seeds in values.items():
            if of_seeds:
                value = sum(of_seeds) / len(of_seeds)
                yield common | {"condition": condition, "task": COST, "metric": metric, "value": value}


def _printed(folder: Path) -> Iterator[dict]:
    """Published costs; a method's label says on what hardware it ran, and which other paper printed the number."""
    for line in read_published(folder, TABLE).to_dict("records"):
        notes = [line["hardware"]] if pd.notna(line["hardware"]) else []
        notes += [] if line["source"] == "BitDistiller" else [f"as printed in {line['source']}"]
        common = {"kind": "published", "source": TABLE, "model": line["model"], "task": COST}
        common["condition"] = ", ".join([line["method"], *notes])
        for column in ("training_samples", "gpu_hours"):
            if pd.notna(line[column]):
                yield common | {"metric": column, "value": float(line[column])}


DESIGN = Design(disagreement=0.1, spread=0.1)
CLAIMS = (
    Claim(
        id="little-data",
        sentence="A small budget suffices: at 2 bits distillation wins back most of the perplexity lost by rounding.",
        source=SOURCE,
        test=all_of(
            above(recovered(STUDENT, "clipping and training"), 0.5),
            beside(recovered(CLIPPED, "clipping alone"), where=(CLIPPED,)),
        ),
    ),
)


def figures(report: StudyReport) -> dict[str, "Drawing"]:
    """Seconds and memory of training, for every condition."""
    from bitdistiller.report.figures import conditions_panel

    rows = report.frame()
    time = (
        "Wall time of training, which depends on what else the machine did and is not to be compared between runs made"
        " on different days; of runs that were resumed only the last part is timed, and they are left out."
    )
    if not (rows["metric"] == "joules").any():
        time += " The energy of these runs is not known: their machine does not let it be read."
    return {
        "seconds": conditions_panel(rows, "seconds", COST, "seconds of training", time),
        "memory": conditions_panel(
            rows, "peak_gib", COST, "GiB", "Greatest resident memory of the training process, the software included."
        ),
    }
