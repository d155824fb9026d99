"""Where to spend memory: a larger model with fewer bits, or a smaller one with more?

Three sizes of one family, each at full precision and at 4, 3, 2 and 1 bits, against the bits of the whole model: codes,
scales and zero points of quantized weights, and 16 bits for every other parameter. The rest counts: micro models keep
a large share of their parameters in the embedding, which nobody quantizes here.

*larger-wins* compares what fits: for every condition of a smaller model, the student of the next larger model that has
the most bits without needing more memory, where there is one. Each such pair asks for a lower perplexity of the larger
one; pairs follow from sizes alone, so they are known before any result.
"""

from typing import TYPE_CHECKING

import pandas as pd
from pydantic import model_validator

from bitdistiller.analysis.compare import all_of, lower_perplexity
from bitdistiller.analysis.power import Design
from bitdistiller.analysis.published import BITDISTILLER
from bitdistiller.analysis.record import StudyReport
from bitdistiller.analysis.rows import frame, measured_rows
from bitdistiller.analysis.study import ComparedRuns, Results
from bitdistiller.analysis.verdict import Claim, Verdict, undefined, verdict

if TYPE_CHECKING:
    from bitdistiller.report.drawing import Drawing

QUESTION = "At equal memory, is a larger model with fewer bits better?"
SOURCE = f"{BITDISTILLER}, section on bit-level scaling"
FULL_BITS = 16


class Params(ComparedRuns):
    """Students of several sizes; ``sizes`` names the models from small to large."""

    sizes: list[str]

    @model_validator(mode="after")
    def _several_sizes(self) -> "Params":
        if len(self.sizes) < 2:
            raise ValueError("sizes needs at least two models, from small to large")
        return self


def total_bits(results: Results, condition: str) -> float:
    """Bits of the whole model: quantized weights at their own size, everything else at 16."""
    scores = results.of(condition)[0].scores
    rest = scores.parameters - scores.quantized_parameters
    return scores.quantized_parameters * scores.bits_per_weight + rest * FULL_BITS


def pairs(results: Results) -> list[tuple[str, str]]:
    """(larger, smaller) conditions: the most bits of the next larger model that fit into the smaller one's memory."""
    by_model: dict[str, dict[str, float]] = {model: {} for model in results.params.sizes}
    for condition in results.params.conditions():
        by_model[results.of(condition)[0].scores.model][condition] = total_bits(results, condition)
    found = []
    for smaller, larger in zip(results.params.sizes, results.params.sizes[1:], strict=False):
        for condition, budget in by_model[smaller].items():
            fitting = [(bits, other) for other, bits in by_model[larger].items() if bits <= budget]
            if fitting:
                found.append((max(fitting)[1], condition))
    return found


def judge_larger_wins(results: Results) -> Verdict:
    """The larger model of every pair has a lower perplexity."""
    compared = pairs(results)
    if not compared:
        missing = undefined("perplexity of a larger model over a smaller one", "times", 0, 0)
        return verdict(missing, "undecided", "No student of a larger model fits into the memory of a smaller model.")
    return all_of(*(lower_perplexity(larger, smaller) for larger, smaller in compared))(results)


def table(results: Results) -> pd.DataFrame:
    """Every condition; its level is the whole model's size in millions of bits."""
    return frame(measured_rows(results, {c: total_bits(results, c) / 1e6 for c in results.params.conditions()}))


DESIGN = Design(disagreement=0.2, spread=0.2, comparisons=lambda results: len(pairs(results)) or 1)
CLAIMS = (
    Claim(
        id="larger-wins",
        sentence="At equal memory a larger model with fewer bits has a lower perplexity than a smaller one with more.",
        source=SOURCE,
        test=judge_larger_wins,
    ),
)


def figures(report: StudyReport) -> dict[str, "Drawing"]:
    """Perplexity against the memory of the whole model, a line a size: all of it, and where sizes meet."""
    from bitdistiller.report.figures import size_panel

    caption = "Held-out perplexity (log axis) against the whole model's memory, a line a size, with 95 % intervals."
    near = (
        "The same where one size meets the next, with the bits at each point and without students that are far worse. "
        "Intervals, which are of each model alone, stand in the figure beside; sizes are compared in pairs."
    )
    panels = {"perplexity": (caption, False), "perplexity-close": (near, True)}
    return {
        name: size_panel(report.frame(), "perplexity", "megabits of the whole model", text, close)
        for name, (text, close) in panels.items()
    }
