"""Who should write the text that a student is distilled on?

Teacher, student, loss and budget are the same in every run; only the text differs: written by the student's own
full-precision weights, by a medium or a large model, by the student as it is before training, or by people (the corpus
from which the prompts of the others are cut). Generated sequences end where the model ends them and are filled up with
padding; corpus sequences are full blocks, so there are fewer of them: as many tokens in all, and in every step, as the
teacher's text has without its padding.

*teacher-generated-best* is BitDistiller's claim: text by the teacher beats fixed text and text by the student. It is
decided by perplexity on held-out text, in both comparisons; accuracy and KL to the teacher stand beside. Perplexity is
measured on texts of the same kind as the corpus, which favours the corpus: if teacher-generated text wins in spite of
that, so much the better for the claim, and if it loses, KL to the teacher says whether it is for that reason alone.

*larger-text-lowers-perplexity* is table 5 of the follow-up: text by each of the two larger models leaves a lower
perplexity than text by the student's own model. The paper does not vary the teacher there, and neither does this.
"""

from pathlib import Path

import pandas as pd

from bitdistiller.analysis.compare import accuracy_difference, all_of, beside, kl_difference, lower_perplexity
from bitdistiller.analysis.power import Design
from bitdistiller.analysis.published import BITDISTILLER, FOLLOW_UP, read_published
from bitdistiller.analysis.rows import comparison_table, published_rows
from bitdistiller.analysis.study import ComparedRuns, Results
from bitdistiller.analysis.verdict import Claim, PublishedNumber

QUESTION = "Who should write the text that a student is distilled on?"
SOURCE = f"{BITDISTILLER}, on data generation; {FOLLOW_UP}, section 6.4.1 and table 5"

TEACHER, MEDIUM, LARGE = "text by the teacher", "text by a medium model", "text by a large model"
CORPUS, STUDENT = "corpus text", "text by the student"

FILE, OWN = "followup_data.csv", "TinyLlama-1.1B"
PRINTED = {OWN: TEACHER, "Llama-3B": MEDIUM, "Llama-2-7B": LARGE}


class Params(ComparedRuns):
    """One student and teacher, a condition a text."""

    required = (TEACHER, MEDIUM, LARGE, CORPUS, STUDENT)


def _rows(results: Results) -> list[dict]:
    full = read_published(results.published, "followup_bits.csv").query("bits == '16'")
    students = read_published(results.published, FILE).rename(columns={"student": "model"})
    students["bits"] = students["data_generated_by"]
    return published_rows(pd.concat([full, students]), FILE, "qa_avg", PRINTED, dict.fromkeys(PRINTED.values()))


def printed_ratios(folder: Path) -> list[PublishedNumber]:
    """Table 5: perplexity with a larger model's text over that with the student's own model's."""
    ppl = read_published(folder, FILE).set_index("data_generated_by")["ppl"]
    return [
        PublishedNumber(
            model=f"{OWN} on text by {author}",
            value=ppl[author] / ppl[OWN],
            unit="times",
            description="perplexity with a larger model's text over that with its own",
            file=FILE,
        )
        for author in PRINTED
        if author != OWN
    ]


table = comparison_table(_rows)
DESIGN = Design(disagreement=0.2, spread=0.1)
CLAIMS = (
    Claim(
        id="teacher-generated-best",
        sentence="Text by the teacher makes a better student than fixed text and than text by the student.",
        source=f"{BITDISTILLER}, on data generation",
        test=all_of(
            *(lower_perplexity(TEACHER, other) for other in (CORPUS, STUDENT)),
            *(beside(accuracy_difference(TEACHER, other)) for other in (CORPUS, STUDENT)),
            *(beside(kl_difference(TEACHER, other)) for other in (CORPUS, STUDENT)),
        ),
    ),
    Claim(
        id="larger-text-lowers-perplexity",
        sentence="Text by a larger model lowers the student's perplexity.",
        source=f"{FOLLOW_UP}, section 6.4.1 and table 5",
        published=printed_ratios,
        test=all_of(
            *(lower_perplexity(larger, TEACHER) for larger in (MEDIUM, LARGE)),
            *(beside(accuracy_difference(larger, TEACHER)) for larger in (MEDIUM, LARGE)),
        ),
    ),
)
