"""Does the temperature of distillation matter when cross-entropy is added to CAKLD, and does the cross-entropy itself?

Equation 2 of the follow-up adds the cross-entropy of the data to CAKLD, whose distributions are softened by a
temperature T, times T squared. Three runs have T = 2, 5 and 20; a fourth is CAKLD alone at T = 1. All else is equal.

The paper finds "no significant difference", but a test that finds none has shown nothing: with few items it never
finds any. So both claims ask for equivalence, by two one-sided tests: every pair has to be the same within 2 points of
accuracy and a perplexity ratio of 1.05, either way. Two points are about twice the error that the paper prints for one
task, so a smaller difference it could not have seen itself; 1.05 is a third of what separates BitDistiller from its
closest rival at 2 bits. A pair that certainly lies outside contradicts; too few items leave the claim undecided.

*temperature-makes-no-difference* compares the three temperatures with each other. *cross-entropy-makes-no-difference*
compares each of them with CAKLD alone; there the paper prints a lower perplexity with cross-entropy than without,
while its text speaks of a slight increase.
"""

from itertools import combinations
from pathlib import Path

import pandas as pd

from bitdistiller.analysis.compare import all_of, same_accuracy, same_perplexity
from bitdistiller.analysis.power import Design
from bitdistiller.analysis.published import FOLLOW_UP, read_published
from bitdistiller.analysis.rows import comparison_table, published_rows
from bitdistiller.analysis.study import ComparedRuns, Results
from bitdistiller.analysis.verdict import Claim, PublishedNumber, Unit

QUESTION = "Does the temperature of distillation matter beside cross-entropy, and does cross-entropy?"
SOURCE = f"{FOLLOW_UP}, section 6.4.4, equation 2 and tables 7 and 8"

ALONE, WITH_CE = "CAKLD alone", {t: f"CE + CAKLD, T = {t}" for t in (2, 5, 20)}
POINTS, RATIO = 2, 1.05
FILE, BITS_FILE, STUDENT = "followup_kd_temperature.csv", "followup_bits.csv", "TinyLlama-1.1B"


class Params(ComparedRuns):
    """CAKLD alone, and with cross-entropy at three temperatures."""

    required = (ALONE, *WITH_CE.values())


def _same(pairs) -> list:
    return [
        same(*pair, margin) for pair in pairs for same, margin in ((same_perplexity, RATIO), (same_accuracy, POINTS))
    ]


def _alone(folder: Path) -> pd.Series:
    """The printed 2-bit student of CAKLD alone; how many epochs it had is not printed."""
    return read_published(folder, BITS_FILE).set_index(["model", "bits"]).loc[(STUDENT, "2")]


def _rows(results: Results) -> list[dict]:
    """Each number of epochs is a model of its own, since the tables mix them."""
    bits = read_published(results.published, BITS_FILE)
    students = read_published(results.published, FILE).rename(columns={"student": "model"})
    students = students.sort_values("kd_temperature")
    students["bits"] = students["kd_temperature"].map(WITH_CE)
    labels = {label: label for label in WITH_CE.values()}
    rows = published_rows(bits[bits["model"] == STUDENT], BITS_FILE, "qa_avg", {"2": ALONE}, {ALONE: None})
    for epochs, part in students.groupby("epochs"):
        both = pd.concat([bits[bits["bits"] == "16"], part])
        printed = published_rows(both, FILE, "qa_avg", labels, dict.fromkeys(labels))
        rows += [row | {"model": f"{row['model']}, {epochs} epochs"} for row in printed]
    return rows


def printed_pairs(folder: Path) -> list[PublishedNumber]:
    """Accuracy of one temperature minus another, at equal epochs; only one perplexity is printed."""
    table = read_published(folder, FILE)
    score = table[table.duplicated("epochs", keep=False)].set_index("kd_temperature")["qa_avg"]
    return [
        _number(
            f"T = {first} minus T = {second}", score[first] - score[second], "points", "accuracy between temperatures"
        )
        for first, second in combinations(WITH_CE, 2)
    ]


def printed_against_alone(folder: Path) -> list[PublishedNumber]:
    """Every printed student with cross-entropy against CAKLD alone: perplexity where there is one, and accuracy."""
    alone, numbers = _alone(folder), []
    for line in read_published(folder, FILE).to_dict("records"):
        name = f"T = {line['kd_temperature']}, {line['epochs']} epochs"
        if pd.notna(line["ppl"]):
            numbers.append(_number(name, line["ppl"] / alone["ppl"], "times", "perplexity over CAKLD alone"))
        numbers.append(_number(name, line["qa_avg"] - alone["qa_avg"], "points", "accuracy minus CAKLD alone"))
    return numbers


def _number(name: str, value: float, unit: Unit, words: str) -> PublishedNumber:
    return PublishedNumber(model=f"{STUDENT}, {name}", value=value, unit=unit, description=words, file=FILE)


table = comparison_table(_rows)
DESIGN = Design(disagreement=0.1, spread=0.05)
CLAIMS = (
    Claim(
        id="temperature-makes-no-difference",
        sentence="With cross-entropy beside CAKLD, temperatures of 2, 5 and 20 make no difference.",
        source=f"{FOLLOW_UP}, section 6.4.4, tables 7 and 8",
        published=printed_pairs,
        test=all_of(*_same(combinations(WITH_CE.values(), 2))),
    ),
    Claim(
        id="cross-entropy-makes-no-difference",
        sentence="Cross-entropy beside CAKLD makes no difference to CAKLD alone.",
        source=f"{FOLLOW_UP}, section 6.4.4, tables 7 and 8",
        published=printed_against_alone,
        test=all_of(*_same((label, ALONE) for label in WITH_CE.values())),
    ),
)
