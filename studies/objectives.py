"""Which objective distils best: CAKLD against its two ends, JSD, TSLD and plain cross-entropy.

All students start from the same clipped 2-bit weights, see the same text in the same order, and take the same number of
steps at the same learning rate; only the loss differs. CAKLD's gamma is measured on the text (the teacher's mean
probability of the next token), so forward and reverse KL are the same family with gamma fixed at 0 and at 1.

*ends-better* is BitDistiller's claim at the end of the budget: a lower perplexity than each of the five, corrected
together. *converges-faster* asks the same of KL divergence to the teacher on held-out text, which every objective but
cross-entropy minimises in one direction or the other: how near a student has come with equal steps. One budget
cannot tell speed from destination; the curves show both.
"""

from bitdistiller.analysis.compare import all_of, below, kl_difference, lower_perplexity
from bitdistiller.analysis.power import Design
from bitdistiller.analysis.published import BITDISTILLER
from bitdistiller.analysis.study import ComparedRuns
from bitdistiller.analysis.verdict import Claim

QUESTION = "Does CAKLD converge faster and end better than other objectives?"
SOURCE = f"{BITDISTILLER}, section 3.3 and its comparison of objectives"

CAKLD = "CAKLD"
OTHERS = ("forward KL", "reverse KL", "JSD", "TSLD", "cross-entropy")


class Params(ComparedRuns):
    """One condition an objective."""

    required = (CAKLD, *OTHERS)


DESIGN = Design(disagreement=0.1, spread=0.05)
CLAIMS = (
    Claim(
        id="ends-better",
        sentence="At the same budget CAKLD ends with a lower perplexity than every other objective.",
        source=SOURCE,
        test=all_of(*(lower_perplexity(CAKLD, other) for other in OTHERS)),
    ),
    Claim(
        id="converges-faster",
        sentence="After the same steps CAKLD's student is closer to its teacher than every other objective's.",
        source=SOURCE,
        test=all_of(*(below(kl_difference(CAKLD, other), 0) for other in OTHERS)),
    ),
)
