"""Does it matter that padding is left out of gamma, CAKLD's weight of reverse KL?

Gamma is the teacher's mean confidence over the training text. BitDistiller's formula takes the probability of the
label; its released code the greatest probability, averaged over padded positions as well, which the follow-up masks
out. That makes four gammas a data set, all measured on the same pass of the teacher (``TeacherRecord.gammas``), and
four students that differ in nothing else.

The first two claims are about data, not about students: their sample is the data sets, one change each, the ratio of
gamma without padding to gamma with it. The mean of its logarithm has a t-interval over data sets. Data sets without any
padding (corpus text in full blocks) are left out: nothing can be excluded from them, so their change is zero by
construction and says nothing. One data set has no spread; then the claim is undecided. Data sets that share a teacher
are alike, so the interval speaks for data sets of these teachers.

Both are about the greatest probability, which is what the follow-up's code had. The label's stands beside and decides
nothing: a padded position's label has next to no probability, so that gamma falls by the share of padding, by
arithmetic. A teacher may be as sure of the greatest probability there as elsewhere; whether it is, is an observation.

*by-the-printed-percentage*: the mean change lies within 2 percentage points of the printed one, on either side. Two
percent of a gamma near one half move CAKLD's weights by a hundredth, of the whole way from forward to reverse KL. How
large the change is depends on how much of a text is padding, which the paper does not print: the share stands beside
each data set in the figure, and beside the claim the share at which the change would be the printed one, if padded
positions were as sure as they are here.

*no-difference-to-the-student* asks for equivalence, as ``kd_temperature`` does and within the same margins: 2 points
of accuracy, a perplexity ratio of 1.05. Students of the greatest probability stand beside.
"""

import math
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from bitdistiller.analysis.compare import (
    Measure,
    Quantity,
    above,
    accuracy_difference,
    all_of,
    below,
    beside,
    perplexity_ratio,
    same_accuracy,
    same_perplexity,
)
from bitdistiller.analysis.power import Design
from bitdistiller.analysis.published import BITDISTILLER, FOLLOW_UP
from bitdistiller.analysis.record import StudyReport
from bitdistiller.analysis.rows import comparison_table
from bitdistiller.analysis.stats import Estimate
from bitdistiller.analysis.study import ComparedRuns, Results
from bitdistiller.analysis.verdict import Claim, Finding, undefined

if TYPE_CHECKING:
    from bitdistiller.report.drawing import Drawing

QUESTION = "Does it matter that padding is left out of gamma?"
SOURCE = f"{FOLLOW_UP}, section 6.4.2; {BITDISTILLER}, section 3.3 and its released code"

LABEL, LABEL_PADDED = "label probability", "label probability, with padding"
MAX, MAX_PADDED = "greatest probability", "greatest probability, with padding"
PRINTED, TOLERANCE = 5.54, 2  # percent, and percentage points
POINTS, RATIO = 2, 1.05


class Params(ComparedRuns):
    """A student for each gamma, and the data sets whose gammas are compared."""

    teachers: Annotated[list[str], Field(min_length=1)]
    required = (LABEL, LABEL_PADDED, MAX, MAX_PADDED)


def change(way: str) -> Measure:
    """Gamma without padding over gamma with it, mean over data sets; ``way`` is ``label`` or ``max``."""

    def measure(results: Results) -> Quantity | Finding:
        padded = {name: record.gammas for name, record in results.teachers.items() if record.padding > 0}
        logs = [math.log(gammas[way] / gammas[f"{way}-with-padding"]) for gammas in padded.values()]
        name = f"change of gamma ({way}) by leaving padding out"
        if len(logs) < 2:
            alone = f", {100 * math.expm1(logs[0]):.1f} % in the only data set that has any" if logs else ""
            return undefined(name + alone, "percent", len(logs), 1).model_copy(
                update={"needs": "two data sets or more"}
            )
        estimate = _mean(logs)
        return Quantity(f"{name}, mean over data sets", estimate, "percent", estimate.p_value())

    return measure


def padding_for(percent: float) -> Measure:
    """Share of padding at which leaving it out would raise the gamma of greatest probabilities by ``percent``."""

    def measure(results: Results) -> Quantity | Finding:
        shares = []
        for record in results.teachers.values():
            if record.padding > 0:
                real, all_of_it = record.gammas["max"], record.gammas["max-with-padding"]
                lost = (real - all_of_it) / record.padding  # confidence at a real position minus at a padded one
                shares.append((real - real / (1 + percent / 100)) / lost if lost > 0 else math.inf)
        name = f"share of padding at which the change (max) would be {percent} %"
        if len(shares) < 2 or math.inf in shares:
            return undefined(name, "share", len(shares), 1)
        return Quantity(f"{name}, mean over data sets", _mean(shares), "share")

    return measure


def _mean(values: list[float]) -> Estimate:
    """Of data sets, with their t-interval."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Estimate(float(np.mean(values)), error, len(values) - 1, len(values), seeds=1, sample="data sets")


def _rows(results: Results) -> list[dict]:
    """The four gammas of every data set, and its share of padding."""
    return [
        {
            "kind": "run",
            "source": "measured",
            "model": record.teacher,
            "condition": name,
            "task": "gamma",
            "metric": metric,
            "value": value,
            "n": record.tokens,
        }
        for name, record in results.teachers.items()
        for metric, value in (record.gammas | {"padding": record.padding}).items()
    ]


def figures(report: StudyReport) -> dict[str, "Drawing"]:
    """The gammas of every data set, and the students."""
    import matplotlib

    from bitdistiller.report.drawing import LOOK, MARKERS, SERIES, Drawing, axes
    from bitdistiller.report.figures import comparison_figures

    rows = report.frame().query("task == 'gamma'")
    padding = rows[rows["metric"] == "padding"].set_index("condition")["value"]
    names = {name: f"{name} ({share:.0%} padding)" for name, share in padding.items()}
    with matplotlib.rc_context(LOOK | {"axes.grid.axis": "x"}):
        figure, ax = axes("Measured: gamma", "", height=1.3 + 0.22 * len(names))
        ways = rows[rows["metric"] != "padding"].groupby("metric", sort=False)
        for (way, part), colour, marker in zip(ways, SERIES, MARKERS, strict=False):
            style = {"linestyle": "none", "color": colour, "marker": marker}
            ax.plot(part["value"], part["condition"].map(names), label=way, **style)
        ax.set_xlabel("gamma")
        ax.invert_yaxis()
        figure.legend(loc="outside lower left", ncols=2)
    caption = "The teacher's mean confidence over each training text, measured in four ways."
    return {"gamma": Drawing(figure, caption)} | comparison_figures(report)


table = comparison_table(_rows)
DESIGN = Design(disagreement=0.1, spread=0.05)
CLAIMS = (
    Claim(
        id="raises-gamma",
        sentence="Leaving padding out raises gamma.",
        source=f"{FOLLOW_UP}, section 6.4.2",
        test=all_of(above(change("max"), 0), beside(change("label"))),
    ),
    Claim(
        id="by-the-printed-percentage",
        sentence=f"On these texts leaving padding out raises gamma by {PRINTED} %.",
        source=f"{FOLLOW_UP}, section 6.4.2",
        test=all_of(
            above(change("max"), PRINTED - TOLERANCE),
            below(change("max"), PRINTED + TOLERANCE),
            beside(padding_for(PRINTED)),
        ),
    ),
    Claim(
        id="no-difference-to-the-student",
        sentence="Leaving padding out of gamma makes no difference to the student.",
        source=f"{FOLLOW_UP}, section 6.4.2",
        test=all_of(
            same_perplexity(LABEL, LABEL_PADDED, RATIO),
            same_accuracy(LABEL, LABEL_PADDED, POINTS),
            *(beside(perplexity_ratio(other, LABEL)) for other in (MAX, MAX_PADDED)),
            *(beside(accuracy_difference(other, LABEL)) for other in (MAX, MAX_PADDED)),
        ),
    ),
)
