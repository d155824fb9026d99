"""One sentence that says what is varied here, and what is held equal.

Then the rule of every claim, in words, fixed before any result was seen: what would support it, what would contradict
it, and why a margin is what it is.
"""

from bitdistiller.analysis.compare import all_of, lower_perplexity, same_accuracy
from bitdistiller.analysis.power import Design
from bitdistiller.analysis.study import ComparedRuns
from bitdistiller.analysis.verdict import Claim

QUESTION = "Does the treatment do better than the control?"
SOURCE = "paper, section and table"

TREATMENT, CONTROL = "treatment", "control"


class Params(ComparedRuns):
    """Conditions are labels in params.yaml, each with its runs."""

    required = (TREATMENT, CONTROL)


# Assumed before the runs: how often two models disagree about an item, and how far documents scatter (nats a token).
DESIGN = Design(disagreement=0.2, spread=0.1)
CLAIMS = (
    Claim(
        id="lower-perplexity",
        sentence="The treatment has a lower perplexity than the control.",
        source=SOURCE,
        test=all_of(lower_perplexity(TREATMENT, CONTROL)),
    ),
    Claim(
        id="same-accuracy",
        sentence="The treatment's accuracy is the control's, up to two points either way.",
        source=SOURCE,
        test=all_of(same_accuracy(TREATMENT, CONTROL, points=2)),
    ),
)
