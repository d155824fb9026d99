"""Which format at which width: evenly spaced levels (INT-Asym) or quantiles of a normal (NF-Asym), at 2, 3 and 4 bits.

Both are asymmetric and clipped with the same search; a scale and a zero point a group cost INT-Asym a little less
than NF-Asym's two scales, which the table of runs says. Of four levels NF has one below zero and two above, so it moves
the mean of the weights; ``bitdistiller formats`` says how far.

BitDistiller trains NF at 3 bits and INT at 2. *nf-at-3-bits* and *int-at-2-bits* each ask for a lower perplexity of the
format that it chose; 4 bits, of which it says nothing, stand beside.
"""

from pathlib import Path

from bitdistiller.analysis.compare import all_of, beside, lower_perplexity, perplexity_ratio
from bitdistiller.analysis.power import Design
from bitdistiller.analysis.published import BITDISTILLER, FOLLOW_UP, read_published
from bitdistiller.analysis.study import ComparedRuns
from bitdistiller.analysis.verdict import Claim, PublishedNumber

QUESTION = "Is NF the better format at 3 bits, and INT at 2?"
SOURCE = f"{BITDISTILLER}, section 3.1; {FOLLOW_UP}, results of its repository"
REPOSITORY = "followup_repo_results.csv"


def label(name: str, bits: int) -> str:
    """Condition of a format and a width."""
    return f"{name}, {bits} bits"


class Params(ComparedRuns):
    """Both formats at three widths."""

    required = tuple(label(name, bits) for bits in (4, 3, 2) for name in ("NF-Asym", "INT-Asym"))


def printed_ratio(folder: Path) -> list[PublishedNumber]:
    """Perplexity of NF over INT at 3 bits, for every model that the follow-up's repository lists in both formats."""
    rows = read_published(folder, REPOSITORY)
    rows = rows[(rows["bits"] == "3") & rows["variant"].isna()]
    by_format = rows.pivot(index="model", columns="format", values="ppl").dropna()
    return [
        PublishedNumber(
            model=model,
            value=line["nf"] / line["int"],
            unit="times",
            description="perplexity of NF over INT at 3 bits",
            file=REPOSITORY,
        )
        for model, line in by_format.iterrows()
    ]


DESIGN = Design(disagreement=0.1, spread=0.05)
CLAIMS = (
    Claim(
        id="nf-at-3-bits",
        sentence="At 3 bits NF-Asym ends with a lower perplexity than INT-Asym.",
        source=SOURCE,
        published=printed_ratio,
        test=all_of(
            lower_perplexity(label("NF-Asym", 3), label("INT-Asym", 3)),
            beside(perplexity_ratio(label("NF-Asym", 4), label("INT-Asym", 4))),
        ),
    ),
    Claim(
        id="int-at-2-bits",
        sentence="At 2 bits INT-Asym ends with a lower perplexity than NF-Asym.",
        source=SOURCE,
        test=all_of(lower_perplexity(label("INT-Asym", 2), label("NF-Asym", 2))),
    ),
)
