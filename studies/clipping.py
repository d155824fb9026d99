"""What clipping is worth: none, one shrink for both ends of a group, or one for each end, at 2 and at 3 bits.

Clipping decides where a student starts: the bounds are searched once, on calibration text, and training moves on from
the clipped weights. Everything else is the same for all students. Their perplexity before the first step is the first
point of the training curves.

*needed-at-2-bits* reads "collapses or stays behind" as its weaker half, a higher perplexity than with asymmetric
clipping at the end of the budget; the ratio says how much of a collapse it is, and 3 bits stand beside. *asymmetric*
asks whether freeing the two ends from each other pays, at both widths.
"""

from bitdistiller.analysis.compare import all_of, beside, lower_perplexity, perplexity_ratio
from bitdistiller.analysis.power import Design
from bitdistiller.analysis.published import BITDISTILLER
from bitdistiller.analysis.study import ComparedRuns
from bitdistiller.analysis.verdict import Claim

QUESTION = "Does 2-bit training need asymmetric clipping?"
SOURCE = f"{BITDISTILLER}, section 3.2 and its ablation of clipping"


def label(bits: int, clip: str) -> str:
    """Condition of a width and a kind of clipping."""
    return f"{bits} bits, {clip}"


class Params(ComparedRuns):
    """Three kinds of clipping at two widths."""

    required = tuple(label(bits, clip) for bits in (3, 2) for clip in ("none", "symmetric", "asymmetric"))


DESIGN = Design(disagreement=0.1, spread=0.1)
CLAIMS = (
    Claim(
        id="needed-at-2-bits",
        sentence="Without clipping, 2-bit training collapses or stays behind training with asymmetric clipping.",
        source=SOURCE,
        test=all_of(
            lower_perplexity(label(2, "asymmetric"), label(2, "none")),
            beside(perplexity_ratio(label(3, "asymmetric"), label(3, "none"))),
        ),
    ),
    Claim(
        id="asymmetric",
        sentence="Asymmetric clipping ends with a lower perplexity than symmetric clipping, at 2 and at 3 bits.",
        source=SOURCE,
        test=all_of(*(lower_perplexity(label(bits, "asymmetric"), label(bits, "symmetric")) for bits in (2, 3))),
    ),
)
