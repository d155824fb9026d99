"""What is left of a student whose teacher numbers its words differently?

The same 2-bit student, once taught by its own full-precision weights and once by a model of the same size and family
whose tokenizer is another one. The two vocabularies are equally large, so shapes fit and nothing fails: the student
reads the other tokenizer's ids as its own and learns which id follows which in a numbering that is not its own. This
suite refuses such a pair (``trainer.check_vocabulary``); the run here sets ``allow_vocabulary_mismatch``. Where
other studies' budget is too short for the second one's curve to level off, both runs have a longer one: to unlearn
takes steps too.

*perplexity-collapses* reads "destroys" as at least ten times the perplexity of self-distillation, an order of
magnitude, which no difference between working students of one size comes near; the 95 % interval decides.

*accuracy-collapses* needs both: at most a quarter of what full precision gains over guessing is left, and the student
of its own weights does better, for otherwise the teacher would have destroyed nothing. The first is stated as a
share of the gain because a margin in points that is small for a model far above chance can be all of another's gain.
Where full precision itself guesses there is nothing to lose, and the claim is undecided.
"""

from pathlib import Path

import pandas as pd

from bitdistiller.analysis.compare import (
    Quantity,
    all_of,
    below,
    higher_accuracy,
    perplexity_ratio_at_least,
    retained,
)
from bitdistiller.analysis.power import Design
from bitdistiller.analysis.published import CHANCE, FOLLOW_UP, chance_of, read_published
from bitdistiller.analysis.rows import comparison_table, published_rows
from bitdistiller.analysis.study import ComparedRuns, Results
from bitdistiller.analysis.verdict import Claim, Finding, PublishedNumber, Unit

QUESTION = "What does a teacher of another vocabulary do to its student?"
SOURCE = f"{FOLLOW_UP}, section 6.3 and table 4"

SAME, OTHER = "own vocabulary", "another vocabulary"
COLLAPSE_RATIO, LEFT = 10, 1 / 4

FILE, STUDENT = "followup_teacher.csv", "Llama-3.2-3B"
PRINTED = {"self": SAME, "Llama-2-7B": OTHER}


class Params(ComparedRuns):
    """One student under a teacher of its own vocabulary and under one of another."""

    required = (SAME, OTHER)


def _printed(folder: Path) -> pd.DataFrame:
    """The student's rows under each teacher, and its full precision, keyed by ``bits``."""
    full = read_published(folder, "followup_bits.csv")
    students = read_published(folder, FILE).rename(columns={"student": "model"})
    students["bits"] = students["teacher"]
    both = pd.concat([full, students])
    return both[both["model"] == STUDENT].set_index("bits", drop=False).loc[["16", *PRINTED]]


def _rows(results: Results) -> list[dict]:
    return published_rows(_printed(results.published), FILE, "qa_avg", PRINTED, dict.fromkeys(PRINTED.values()))


def printed_ratio(folder: Path) -> list[PublishedNumber]:
    """Perplexity under the teacher of another vocabulary over self-distillation's."""
    ppl = _printed(folder)["ppl"]
    words = "perplexity under a teacher of another vocabulary over self-distillation's"
    return [_number(ppl["Llama-2-7B"] / ppl["self"], "times", words)]


def printed_retention(folder: Path) -> list[PublishedNumber]:
    """Chance-subtracted retention under the teacher of another vocabulary, from the printed averages."""
    table = _printed(folder)
    score, chance = table["qa_avg"], 100 * chance_of(c for c in table if c in CHANCE)
    kept = (score["Llama-2-7B"] - chance) / (score["16"] - chance)
    return [_number(kept, "share", "chance-subtracted retention under a teacher of another vocabulary")]


def _number(value: float, unit: Unit, words: str) -> PublishedNumber:
    return PublishedNumber(model=STUDENT, value=value, unit=unit, description=words, file=FILE)


def left(results: Results) -> Quantity | Finding:
    """Share of full precision's gain over guessing that the student of another vocabulary keeps."""
    return retained(OTHER, results.full_of(OTHER))(results)


table = comparison_table(_rows)
DESIGN = Design(disagreement=0.4, spread=1.0)
CLAIMS = (
    Claim(
        id="perplexity-collapses",
        sentence="A teacher of another vocabulary destroys the student's perplexity.",
        source=SOURCE,
        published=printed_ratio,
        test=all_of(perplexity_ratio_at_least(OTHER, SAME, COLLAPSE_RATIO)),
    ),
    Claim(
        id="accuracy-collapses",
        sentence="A teacher of another vocabulary leaves little of the student's accuracy above guessing.",
        source=SOURCE,
        published=printed_retention,
        test=all_of(below(left, LEFT), higher_accuracy(SAME, OTHER)),
    ),
)
