"""Does a larger teacher make a better 2-bit student than the student's own full-precision weights?

Two students of 2 bits, small and medium, each taught by itself (self-distillation) and by larger models of the same
family and vocabulary. Every teacher brings the text that it wrote, as both papers do it, so what is compared is the
whole recipe; ``teacher_data`` holds the teacher fixed and changes the text alone.

The papers disagree here. BitDistiller reports that for LLaMA-2-7B a teacher of 13B is no better than the model itself,
and takes self-distillation for that reason. Table 4 of the follow-up prints lower perplexities under larger teachers.
So there are two claims, one a paper's; a larger teacher that helps by less than the margin supports both.

*no-gain* is non-inferiority of self-distillation: in none of the three pairs is the larger teacher better by more than
a margin. The margins are 2 points of accuracy, about twice the error that the papers print for one task, and a
perplexity ratio of 1.05, a third of what separates BitDistiller from its closest rival at 2 bits: less than that is no
reason to run a second, larger model. Contradicted where a larger teacher is certainly better by more.

*larger-lowers-perplexity* is table 4's direction: in every pair the perplexity under the larger teacher is lower.
"""

from pathlib import Path

import pandas as pd

from bitdistiller.analysis.compare import all_of, lower_perplexity, no_higher_accuracy, no_lower_perplexity
from bitdistiller.analysis.power import Design
from bitdistiller.analysis.published import BITDISTILLER, FOLLOW_UP, read_published
from bitdistiller.analysis.rows import comparison_table, published_rows
from bitdistiller.analysis.study import ComparedRuns, Results
from bitdistiller.analysis.verdict import Claim, PublishedNumber, Unit

QUESTION = "Does a larger teacher make a better low-bit student than self-distillation?"
SOURCE = f"{BITDISTILLER}, on the choice of teacher; {FOLLOW_UP}, section 6.3 and table 4"

SMALL, SMALL_BY_MEDIUM, SMALL_BY_LARGE = "small by itself", "small by medium", "small by large"
MEDIUM, MEDIUM_BY_LARGE = "medium by itself", "medium by large"
PAIRS = ((SMALL_BY_MEDIUM, SMALL), (SMALL_BY_LARGE, SMALL), (MEDIUM_BY_LARGE, MEDIUM))  # larger teacher, self
POINTS, RATIO = 2, 1.05

# Table 4: the student of the first condition under each printed teacher. Its other student with a larger teacher has
# another vocabulary than that, which is the study vocabulary_mismatch.
FILE, STUDENT = "followup_teacher.csv", "TinyLlama-1.1B"
PRINTED = {"self": SMALL, "Llama-3B": SMALL_BY_MEDIUM, "Llama-2-7B": SMALL_BY_LARGE}


class Params(ComparedRuns):
    """Two students, each by itself and by larger teachers; ``full`` has the original of either."""

    required = (SMALL, SMALL_BY_MEDIUM, SMALL_BY_LARGE, MEDIUM, MEDIUM_BY_LARGE)


def _printed(folder: Path) -> pd.DataFrame:
    """Table 4's rows of that student, by teacher."""
    table = read_published(folder, FILE)
    return table[table["student"] == STUDENT].set_index("teacher").loc[list(PRINTED)]


def _rows(results: Results) -> list[dict]:
    full = read_published(results.published, "followup_bits.csv").query("bits == '16'")
    students = _printed(results.published).rename(columns={"student": "model"})
    students["bits"] = students.index
    return published_rows(pd.concat([full, students]), FILE, "qa_avg", PRINTED, dict.fromkeys(PRINTED.values()))


def _against_self(folder: Path) -> list[tuple[str, float, float]]:
    """Each larger teacher: perplexity under it over self-distillation's, and its gain of accuracy in points."""
    rows = _printed(folder)
    ratios, gains = rows["ppl"] / rows.loc["self", "ppl"], rows["qa_avg"] - rows.loc["self", "qa_avg"]
    return [(f"{STUDENT} by {teacher}", ratios[teacher], gains[teacher]) for teacher in PRINTED if teacher != "self"]


def printed_gains(folder: Path) -> list[PublishedNumber]:
    """Table 4 in the terms of *no-gain*: perplexity of self over larger, accuracy of larger minus self."""
    words = "perplexity of self-distillation over that under a larger teacher"
    ratios = [(model, 1 / ratio, "times", words) for model, ratio, _ in _against_self(folder)]
    words = "accuracy under a larger teacher minus that of self-distillation"
    return _numbers(ratios + [(model, gain, "points", words) for model, _, gain in _against_self(folder)])


def printed_ratios(folder: Path) -> list[PublishedNumber]:
    """Table 4's perplexities in the terms of *larger-lowers-perplexity*."""
    words = "perplexity under a larger teacher over that of self-distillation"
    return _numbers([(model, ratio, "times", words) for model, ratio, _ in _against_self(folder)])


def _numbers(cells: list[tuple[str, float, Unit, str]]) -> list[PublishedNumber]:
    return [
        PublishedNumber(model=model, value=value, unit=unit, description=words, file=FILE)
        for model, value, unit, words in cells
    ]


table = comparison_table(_rows)
DESIGN = Design(disagreement=0.2, spread=0.1)
CLAIMS = (
    Claim(
        id="no-gain",
        sentence="A larger teacher does not beat self-distillation.",
        source=f"{BITDISTILLER}, on the choice of teacher",
        published=printed_gains,
        test=all_of(
            *(no_lower_perplexity(larger, own, RATIO) for larger, own in PAIRS),
            *(no_higher_accuracy(larger, own, POINTS) for larger, own in PAIRS),
        ),
    ),
    Claim(
        id="larger-lowers-perplexity",
        sentence="A larger teacher lowers the student's perplexity.",
        source=f"{FOLLOW_UP}, table 4",
        published=printed_ratios,
        test=all_of(*(lower_perplexity(larger, own) for larger, own in PAIRS)),
    ),
)
