"""Against other methods: rounding, clipping alone, other people's quantizers, LLM-QAT's recipe, and BitDistiller's.

RTN rounds, "clipping" rounds after the asymmetric search, LLM-QAT's recipe trains symmetric INT without clipping under
forward KL to the teacher, with the learning rate, text and budget of BitDistiller (asymmetric
INT, clipped, CAKLD). Other people's quantizers (GPTQ, HQQ, AutoRound) are run from their own packages; a scale whose
table below has no row of theirs did not run them, and its verdict says nothing about them. All have groups of 64 and
the same evaluation.

*beats-all* asks, at both widths, for a lower perplexity than every other method that was run. Accuracies stand beside.
"""

from pathlib import Path

from bitdistiller.analysis.compare import accuracy_difference, all_of, beside, lower_perplexity
from bitdistiller.analysis.power import Design
from bitdistiller.analysis.published import BITDISTILLER, read_published
from bitdistiller.analysis.study import ComparedRuns, Results
from bitdistiller.analysis.verdict import Claim, PublishedNumber, Verdict

QUESTION = "Does BitDistiller beat rounding, clipping, other quantizers and LLM-QAT's recipe?"
SOURCE = f"{BITDISTILLER}, main table"
TABLE = "bitdistiller_llama2.csv"

OURS, WIDTHS = "BitDistiller", (3, 2)
ALWAYS = ("RTN", "clipping", "LLM-QAT's recipe")


def label(method: str, bits: int) -> str:
    """Condition of a method and a width."""
    return f"{method}, {bits} bits"


class Params(ComparedRuns):
    """Methods at two widths; methods beyond the required ones are compared where they are listed."""

    required = tuple(label(method, bits) for bits in WIDTHS for method in (*ALWAYS, OURS))


def judge(results: Results) -> Verdict:
    """BitDistiller has a lower perplexity than every method of the same width."""
    rivals = [
        (label(OURS, bits), other)
        for bits in WIDTHS
        for other in results.params.runs
        if other.endswith(f", {bits} bits") and other != label(OURS, bits)
    ]
    lower = [lower_perplexity(*pair) for pair in rivals]
    return all_of(*lower, *(beside(accuracy_difference(*pair)) for pair in rivals))(results)


def printed_ratio(folder: Path) -> list[PublishedNumber]:
    """Perplexity of BitDistiller over the best other method, for each published model and width."""
    rows, numbers = read_published(folder, TABLE), []
    for (model, bits), part in rows[rows["bits"] != "16"].groupby(["model", "bits"], sort=False):
        ppl = part.set_index("method")["ppl"]
        numbers.append(
            PublishedNumber(
                model=f"{model}, {bits} bits",
                value=ppl[OURS] / ppl.drop(OURS).min(),
                unit="times",
                description="perplexity of BitDistiller over the best other method",
                file=TABLE,
            )
        )
    return numbers


DESIGN = Design(
    disagreement=0.2,
    spread=0.1,
    comparisons=lambda results: (
        sum(run.endswith(tuple(label("", bits) for bits in WIDTHS)) for run in results.params.runs) - len(WIDTHS)
    ),
)
CLAIMS = (
    Claim(
        id="beats-all",
        sentence="At 3 and at 2 bits BitDistiller has a lower perplexity than every other method that was run.",
        source=SOURCE,
        published=printed_ratio,
        test=judge,
    ),
)
