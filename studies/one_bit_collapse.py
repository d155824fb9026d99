"""Why 1 bit fails: is it the distillation, or the grid {0, s} that INT-Asym has at 1 bit?

With one bit INT-Asym can only be zero or one end of the range, so before training nearly all weights are zero; the
follow-up concludes that distillation is ill-suited for 1 bit. Here the same text and the same loss train students of
1 bit whose grid has no zero (`binary`, `binary-shifted`) and of three levels (`ternary`, 1.58 bits of information),
beside INT-Asym at 1 and at 2 bits. Two of them are trained once more without a teacher, under cross-entropy.

Every grid starts as its method has it, which is not the same for all: INT-Asym from the clipping bounds that lose least
of a layer's output, the others from scales in closed form, which lose least of the weights. What clipping alone does is
seen in INT-Asym at 1 bit that was not clipped.

*collapses-on-every-grid* is the follow-up's finding, for 1 bit and not for one grid: every distilled 1-bit student ends
at ten times the perplexity of 2 bits or more, the factor that `bit_scaling` asks too. It says nothing about the cause.
*the-grid-fails* names one: both grids without zero end with a lower perplexity than clipped INT-Asym.
*distillation-fails* names the other, the follow-up's: without a teacher the same 1-bit student ends with a lower
perplexity, on INT-Asym's grid and on `binary`. Both can be right, and neither: then it is 1 bit at this budget.

The share of zeros after training and the distributions of weights are facts beside, not tests: weights are not sampled.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from bitdistiller.analysis.compare import (
    all_of,
    beside,
    lower_perplexity,
    perplexity_ratio,
    perplexity_ratio_at_least,
)
from bitdistiller.analysis.power import Design
from bitdistiller.analysis.published import FOLLOW_UP, read_published
from bitdistiller.analysis.record import StudyReport
from bitdistiller.analysis.study import ComparedRuns
from bitdistiller.analysis.verdict import Claim, PublishedNumber

if TYPE_CHECKING:
    from bitdistiller.report.drawing import Drawing

QUESTION = "Does 1 bit fail because of the distillation, or because of the grid {0, s}?"
SOURCE = f"{FOLLOW_UP}, section 6.2"
TABLE = "followup_bits.csv"

TWO_BITS, INT_ASYM = "INT-Asym, 2 bits", "INT-Asym, 1 bit"
WITHOUT_ZERO = ("binary, 1 bit", "binary-shifted, 1 bit")
TERNARY, NOT_CLIPPED = "ternary, 1.58 bits", "INT-Asym, 1 bit, not clipped"
BY_ITSELF = {INT_ASYM: "INT-Asym, 1 bit, no teacher", "binary, 1 bit": "binary, 1 bit, no teacher"}
COLLAPSE = 10


class Params(ComparedRuns):
    """One condition a grid, two of them without a teacher too; INT-Asym not clipped, where that was run."""

    required = (TWO_BITS, TERNARY, *WITHOUT_ZERO, INT_ASYM, *BY_ITSELF.values())


def printed_collapse(folder: Path) -> list[PublishedNumber]:
    """Perplexity of 1 bit over 2 bits, for each of the follow-up's models (INT-Asym)."""
    by_bits = read_published(folder, TABLE).pivot(index="model", columns="bits", values="ppl")
    return [
        PublishedNumber(
            model=model,
            value=line["1"] / line["2"],
            unit="times",
            description="perplexity of INT-Asym at 1 bit over 2 bits",
            file=TABLE,
        )
        for model, line in by_bits.iterrows()
    ]


DESIGN = Design(disagreement=0.2, spread=0.3)
CLAIMS = (
    Claim(
        id="collapses-on-every-grid",
        sentence=f"Whatever the grid, a distilled 1-bit student ends at {COLLAPSE} times the perplexity of 2 bits.",
        source=SOURCE,
        published=printed_collapse,
        test=all_of(
            *(perplexity_ratio_at_least(grid, TWO_BITS, COLLAPSE) for grid in (INT_ASYM, *WITHOUT_ZERO)),
            beside(perplexity_ratio(TERNARY, TWO_BITS)),
            beside(perplexity_ratio(NOT_CLIPPED, TWO_BITS), where=(NOT_CLIPPED,)),
        ),
    ),
    Claim(
        id="distillation-fails",
        sentence="At 1 bit a student without a teacher ends with a lower perplexity than a distilled one.",
        source=SOURCE,
        test=all_of(*(lower_perplexity(alone, distilled) for distilled, alone in BY_ITSELF.items())),
    ),
    Claim(
        id="the-grid-fails",
        sentence="With the same text and loss, 1-bit grids without zero end with a lower perplexity than {0, s}.",
        source=f"the other reading of {FOLLOW_UP}, section 6.2",
        test=all_of(
            *(lower_perplexity(grid, INT_ASYM) for grid in WITHOUT_ZERO),
            *(beside(perplexity_ratio(grid, NOT_CLIPPED), where=(NOT_CLIPPED,)) for grid in WITHOUT_ZERO),
        ),
    ),
)


def figures(report: StudyReport) -> dict[str, "Drawing"]:
    """The default ones, the share of zeros, error and zeros of every layer, weights before and after training."""
    from bitdistiller.report.figures import comparison_figures, conditions_panel
    from bitdistiller.report.weights import layer_figures, weight_distributions

    rows, drawings = report.frame(), comparison_figures(report)
    if (rows["metric"] == "zeros").any():
        drawings["zeros"] = conditions_panel(
            rows,
            "zeros",
            "weights",
            "share of weights that are zero",
            "Share of quantized weights whose low-bit value is zero after training.",
        )
    students = list(report.params["runs"])
    return drawings | layer_figures(report, students) | weight_distributions(report, (TWO_BITS, INT_ASYM))
