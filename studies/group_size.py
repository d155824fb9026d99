"""Do smaller groups rescue 1 bit?

A group shares one scale and one zero point. Groups of 32, 64 and 128 weights at 1 bit, and the same at 2 bits; where
128 does not divide a layer's width, its last group is shorter. Smaller groups store more scales, so a student of groups
of 32 is larger: the comparison is at equal bits of the codes, as in the paper, not at equal memory, and every run's
bits a weight stand in the table of runs.

*smaller-lowers-perplexity* needs both steps at 1 bit, 128 to 64 and 64 to 32. *accuracy-does-not-rise* is
non-inferiority of the larger groups at 1 bit: halving them, or going from 128 to 32 at once, does not raise mean
accuracy by more than 2 points, about twice the error that the paper prints for one task. Students at chance pass, and
are called so: that is the claim, a perplexity that improves while answers stay guesses. The same comparisons at 2 bits
stand beside.

Table 6 of the follow-up labels its rows with names of models. The results file of its repository has the same numbers
with their group sizes, and is what stands beside ours.
"""

from pathlib import Path

import pandas as pd

from bitdistiller.analysis.compare import (
    accuracy_difference,
    all_of,
    beside,
    lower_perplexity,
    no_higher_accuracy,
    perplexity_ratio,
)
from bitdistiller.analysis.power import Design
from bitdistiller.analysis.published import FOLLOW_UP, read_published
from bitdistiller.analysis.study import ComparedRuns
from bitdistiller.analysis.verdict import Claim, PublishedNumber, Unit

QUESTION = "Do smaller groups rescue 1 bit?"
SOURCE = f"{FOLLOW_UP}, section 6.4.3 and table 6"

POINTS = 2
REPOSITORY, MODEL = "followup_repo_groups.csv", "TinyLlama-1.1B"


def label(bits: int, group_size: int) -> str:
    """Condition of a number of bits and a group size."""
    return f"{bits} bit{'s' if bits > 1 else ''}, groups of {group_size}"


STEPS = ((64, 128), (32, 64))  # smaller, larger
ALL_PAIRS = (*STEPS, (32, 128))


class Params(ComparedRuns):
    """1 and 2 bits at three group sizes."""

    required = tuple(label(bits, size) for bits in (1, 2) for size in (32, 64, 128))


def printed_ratios(folder: Path) -> list[PublishedNumber]:
    """Perplexity of the smaller groups over that of the larger, for both steps."""
    ppl = _by_size(folder)["ppl"]
    return [_number(ppl[small] / ppl[large], "times", "perplexity", small, large) for small, large in STEPS]


def printed_differences(folder: Path) -> list[PublishedNumber]:
    """Accuracy of the smaller groups minus that of the larger, for all pairs."""
    accuracy = _by_size(folder)["qa_avg"]
    return [
        _number(accuracy[small] - accuracy[large], "points", "mean accuracy of four tasks", small, large)
        for small, large in ALL_PAIRS
    ]


def _by_size(folder: Path) -> pd.DataFrame:
    return read_published(folder, REPOSITORY).set_index("group_size")


def _number(value: float, unit: Unit, what: str, small: int, large: int) -> PublishedNumber:
    words = f"{what}, groups of {small} against {large}"
    return PublishedNumber(model=MODEL, value=value, unit=unit, description=words, file=REPOSITORY)


DESIGN = Design(disagreement=0.3, spread=0.2)
CLAIMS = (
    Claim(
        id="smaller-lowers-perplexity",
        sentence="At 1 bit smaller groups lower perplexity.",
        source=SOURCE,
        published=printed_ratios,
        test=all_of(
            *(lower_perplexity(label(1, smaller), label(1, larger)) for smaller, larger in STEPS),
            *(beside(perplexity_ratio(label(2, smaller), label(2, larger))) for smaller, larger in STEPS),
        ),
    ),
    Claim(
        id="accuracy-does-not-rise",
        sentence="At 1 bit smaller groups do not raise accuracy.",
        source=SOURCE,
        published=printed_differences,
        test=all_of(
            *(no_higher_accuracy(label(1, smaller), label(1, larger), POINTS) for smaller, larger in ALL_PAIRS),
            *(beside(accuracy_difference(label(2, smaller), label(2, larger))) for smaller, larger in ALL_PAIRS),
        ),
    ),
)
