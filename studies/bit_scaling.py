"""Quality against bits: the first claim of both papers, and the collapse at 1 bit.

Conditions: full precision (16 bits), students of 3, 2 and 1 bits, and the same network with random weights, which is
no number of bits but a floor. Accuracy is the unweighted mean over tasks of `acc`, as both papers average it.

The rules below were fixed before any result was seen.

*monotone* makes six comparisons, perplexity and accuracy at the steps 16 > 3, 3 > 2 and 2 > 1, each paired and
two-sided, Holm-corrected together. Supported needs all six the claimed way; one significant step the other way
contradicts. The effect shown is that of the weakest step.

*keeps-most* reads "most" as at least half of what full precision gains over chance, for 3 and for 2 bits: the 95 %
interval of the chance-subtracted retention lies above 1/2 for both (supported) or below it for one (contradicted).
Two intervals that each err on one side in 2.5 % of cases keep the claim's error at 5 % without correction. Plain
retention, which credits guessing, is reported and decides nothing.

*one-bit-chance* reads "within two standard errors of chance" as no better than that: a model can answer worse than one
that guesses, where short or frequent endings mislead it, and has learnt no more. There is one guard: an experiment with
large standard errors would support the sentence whatever the model does. Supported: at most two standard errors above
chance, and two standard errors are at most a quarter of full precision's gain over chance. Contradicted: further above,
and the 95 % interval (wider with few seeds) excludes chance too. Undecided otherwise.

*one-bit-perplexity* asks whether the interval of the ratio of perplexities, 1 bit over 2 bits, lies above 10.

All comparisons above are then corrected together over the study (``verdict.family_wise``); *one-bit-chance* takes part
only where it is further above chance, since otherwise nothing is rejected.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from pydantic import model_validator

from bitdistiller.analysis.power import Design, needed_for_error
from bitdistiller.analysis.published import BITDISTILLER, CHANCE, FOLLOW_UP, chance_of, read_published
from bitdistiller.analysis.record import StudyReport
from bitdistiller.analysis.rows import MEAN, frame, measured_rows, published_rows
from bitdistiller.analysis.stats import PERPLEXITY_ITEMS, Panel, accuracy, difference_p, log_perplexity, retention
from bitdistiller.analysis.study import Results, Runs, StudyParams
from bitdistiller.analysis.verdict import (
    Claim,
    Finding,
    PublishedNumber,
    Unit,
    Verdict,
    at_least,
    conjunction,
    directions,
    finding,
    undefined,
    verdict,
)

if TYPE_CHECKING:
    from bitdistiller.report.drawing import Drawing

QUESTION = "How does quality fall with the bits of the weights, and what is left at 1 bit?"
SOURCE = f"{FOLLOW_UP}, tables 1-3 and section 6.2; {BITDISTILLER}, main table"

FULL, RANDOM = "full precision", "random weights"
RETAINED = 1 / 2
COLLAPSE_RATIO = 10
POWER_SHARE = 1 / 4
TABLES = {"followup_bits.csv": "qa_avg", "bitdistiller_llama2.csv": "avg"}


def label(bits: int) -> str:
    """Condition of a number of bits."""
    return FULL if bits == 16 else f"{bits} bit{'s' if bits > 1 else ''}"


class Params(StudyParams):
    """Students by bits, and the same network with random weights."""

    random: Runs
    bits: dict[int, Runs]

    @model_validator(mode="after")
    def _bits_complete(self) -> "Params":
        if missing := {1, 2, 3} - set(self.bits):
            raise ValueError(f"bits lacks {', '.join(map(str, sorted(missing)))}; the claims need 1, 2 and 3")
        if len({len(runs) for runs in self.bits.values()}) > 1:
            raise ValueError("every number of bits needs the same number of runs (seeds)")
        if list(self.full) != [FULL]:
            raise ValueError(f"full must have one entry, labelled {FULL!r}")
        return self

    def students(self) -> dict[str, list[str]]:
        return {label(bits): self.bits[bits] for bits in sorted(self.bits, reverse=True)} | {RANDOM: self.random}


def table(results: Results) -> pd.DataFrame:
    """Measured perplexity, accuracy and retention of each condition, and the papers' for theirs."""
    bits = sorted({16, *results.params.bits}, reverse=True)
    levels = {label(b): float(b) for b in bits} | {RANDOM: None}
    rows = measured_rows(results, levels)
    printed = {str(b): label(b) for b in bits} | {"random": RANDOM}
    for file, average in TABLES.items():
        rows += published_rows(_published(results.published, file), file, average, printed, levels)
    return frame(rows)


def _published(folder: Path, file: str) -> pd.DataFrame:
    """A table of ``TABLES``; of the methods in BitDistiller's, BitDistiller and the full precision it starts from."""
    printed = read_published(folder, file)
    return printed[printed["method"].isin(["BF16", "BitDistiller"])] if "method" in printed else printed


# --- claims ---------------------------------------------------------------------------------------------------------


def _accuracy(results: Results, condition: str) -> Panel:
    return results.panel(condition, "acc")


def _nll(results: Results, condition: str) -> Panel:
    return results.panel(condition, PERPLEXITY_ITEMS, [results.perplexity_task])


def _chance(results: Results) -> float:
    return sum(results.chance.values()) / len(results.chance)


def judge_monotone(results: Results) -> Verdict:
    """Perplexity rises and accuracy falls at each of the steps 16 > 3 > 2 > 1."""
    comparisons = []
    for more, fewer in ((16, 3), (3, 2), (2, 1)):
        step = f"from {label(more)} to {label(fewer)}"
        ratio = log_perplexity([_nll(results, label(fewer)), _nll(results, label(more))], [1, -1])
        comparisons.append((f"perplexity rises {step}", ratio, "times", ratio.p_value()))
        pair = [_accuracy(results, label(more)), _accuracy(results, label(fewer))]
        comparisons.append((f"accuracy falls {step}", accuracy(pair, [1, -1]), "points", difference_p(*pair)))
    parts = directions(comparisons)
    outcome = conjunction(parts)
    distance = {part.description: estimate.t() for part, (_, estimate, *_) in zip(parts, comparisons, strict=True)}
    weakest = min((part for part in parts if part.outcome == outcome), key=lambda part: distance[part.description])
    held = sum(part.outcome == "supported" for part in parts)
    against = sum(part.outcome == "contradicted" for part in parts)
    explanation = (
        f"{held} of {len(parts)} comparisons go the claimed way and {against} the other way after Holm's correction; "
        f"the weakest, {weakest.description}: {weakest.text} over {weakest.basis}."
    )
    return verdict(weakest, outcome, explanation, parts)


def judge_keeps_most(results: Results) -> Verdict:
    """Chance-subtracted retention of mean accuracy is at least one half at 3 and at 2 bits."""
    full, chance = _accuracy(results, FULL), _chance(results)
    score = accuracy([full], [1]).value
    parts, plain = {}, {}
    for condition in (label(3), label(2)):
        student = _accuracy(results, condition)
        kept = retention(student, full, chance)
        if kept is None:
            missing = undefined("chance-subtracted retention", "share", len(full.keys), student.seeds)
            explanation = (
                f"Full precision ({score:.3f}) is not above chance ({chance:.3f}), so there is nothing to keep."
            )
            return verdict(missing, "undecided", explanation)
        plain[condition] = accuracy([student], [1]).value / score
        parts[condition] = finding(
            f"chance-subtracted retention at {condition}",
            kept,
            "share",
            at_least(kept, RETAINED),
            kept.p_value(RETAINED),
        )
    worst = min(parts, key=lambda condition: parts[condition].effect)
    explanation = (
        f"Chance-subtracted retention is least at {worst}: {parts[worst].text} over {parts[worst].basis}, where "
        f"{RETAINED:g} is asked; plain retention is "
        f"{' and '.join(f'{value:.2f} at {condition}' for condition, value in plain.items())}."
    )
    findings = list(parts.values())
    return verdict(parts[worst], conjunction(findings), explanation, findings)


def judge_one_bit_chance(results: Results) -> Verdict:
    """At 1 bit the mean accuracy is at most two standard errors above chance."""
    student, chance = _accuracy(results, label(1)), _chance(results)
    excess = accuracy([student], [1]).minus(chance)
    gain = accuracy([_accuracy(results, FULL)], [1]).value - chance
    powered = 2 * excess.standard_error <= POWER_SHARE * gain
    if excess.t() <= 2:
        outcome = "supported" if powered else "undecided"
    else:
        outcome = "contradicted" if excess.low > 0 else "undecided"
    p = excess.p_value() if excess.t() > 2 else None
    needs = None if powered or p is not None or gain <= 0 else needed_for_error(excess, POWER_SHARE * gain / 2)
    deciding = finding("accuracy at 1 bit minus chance", excess, "points", outcome, p, needs=needs)
    side = "above" if excess.value > 0 else "below"
    explanation = (
        f"Accuracy at 1 bit is {100 * abs(excess.value):.1f} points {side} chance ({100 * chance:.1f} %), "
        f"{abs(excess.t()):.1f} standard errors over {excess.basis}; full precision is {100 * gain:.1f} points above it"
        f"{_why_undecided(powered) if outcome == 'undecided' else ''}."
    )
    return verdict(deciding, outcome, explanation, [*_beside_random(results), *_by_task(results)])


def _why_undecided(powered: bool) -> str:
    if powered:
        return "; with so few seeds the interval still includes chance"
    return ", too little to tell at this number of items and seeds"


def _beside_random(results: Results) -> list[Finding]:
    pair = [_accuracy(results, label(1)), _accuracy(results, RANDOM)]
    return [
        finding("accuracy at 1 bit minus random weights", accuracy(pair, [1, -1]), "points", None, difference_p(*pair))
    ]


def _by_task(results: Results) -> list[Finding]:
    findings = []
    for task, chance in results.chance.items() if len(results.chance) > 1 else ():
        excess = accuracy([results.panel(label(1), "acc", [task])], [1]).minus(chance)
        findings.append(finding(f"{task} at 1 bit minus its chance", excess, "points", None, excess.p_value()))
    return findings


def judge_one_bit_perplexity(results: Results) -> Verdict:
    """At 1 bit perplexity is at least ten times that of 2 bits."""
    ratio = log_perplexity([_nll(results, label(1)), _nll(results, label(2))], [1, -1])
    bound = math.log(COLLAPSE_RATIO)
    deciding = finding("perplexity at 1 bit over 2 bits", ratio, "times", at_least(ratio, bound), ratio.p_value(bound))
    explanation = (
        f"Perplexity at 1 bit is {deciding.text} that of 2 bits over {deciding.basis}, "
        f"where {COLLAPSE_RATIO}× is asked."
    )
    return verdict(deciding, deciding.outcome, explanation)


# --- what the papers print ------------------------------------------------------------------------------------------


def _printed(folder: Path) -> list[tuple[str, str, dict[str, float], dict[str, float]]]:
    """File, model, perplexity by bits and average accuracy by bits (points) of every published model."""
    found = []
    for file, average in TABLES.items():
        for model, rows in _published(folder, file).groupby("model", sort=False):
            by_bits = rows.set_index("bits")
            found.append((file, model, by_bits["ppl"].to_dict(), by_bits[average].to_dict()))
    return found


def _printed_chance(folder: Path, file: str) -> float:
    """Chance level of a table's printed average, in points."""
    return 100 * chance_of(column for column in read_published(folder, file) if column in CHANCE)


def printed_steps(folder: Path) -> list[PublishedNumber]:
    """Each published model's smallest step in perplexity and in accuracy."""
    numbers = []
    for file, model, ppl, acc in _printed(folder):
        steps = [(more, fewer) for more, fewer in (("16", "3"), ("3", "2"), ("2", "1")) if fewer in ppl]
        ratio = min(ppl[fewer] / ppl[more] for more, fewer in steps)
        drop = min(acc[more] - acc[fewer] for more, fewer in steps)
        numbers += [
            _number(file, model, ratio, "times", "smallest rise of perplexity in a step"),
            _number(file, model, drop, "points", "smallest fall of accuracy in a step"),
        ]
    return numbers


def printed_retention(folder: Path) -> list[PublishedNumber]:
    """Each published model's chance-subtracted retention at 2 bits, where it is least."""
    numbers = []
    for file, model, _, acc in _printed(folder):
        chance = _printed_chance(folder, file)
        kept = (acc["2"] - chance) / (acc["16"] - chance)
        numbers.append(_number(file, model, kept, "share", "chance-subtracted retention at 2 bits"))
    return numbers


def printed_excess(folder: Path) -> list[PublishedNumber]:
    """Each published model's average accuracy at 1 bit minus chance."""
    return [
        _number(file, model, acc["1"] - _printed_chance(folder, file), "points", "accuracy at 1 bit minus chance")
        for file, model, _, acc in _printed(folder)
        if "1" in acc
    ]


def printed_collapse(folder: Path) -> list[PublishedNumber]:
    """Each published model's perplexity at 1 bit over that at 2 bits."""
    return [
        _number(file, model, ppl["1"] / ppl["2"], "times", "perplexity at 1 bit over 2 bits")
        for file, model, ppl, _ in _printed(folder)
        if "1" in ppl
    ]


def _number(file: str, model: str, value: float, unit: Unit, description: str) -> PublishedNumber:
    return PublishedNumber(model=model, value=value, unit=unit, description=description, file=file)


DESIGN = Design(disagreement=0.2, spread=0.1, comparisons=10)
CLAIMS = (
    Claim(
        id="monotone",
        sentence="Quality falls monotonically with bits: perplexity rises and accuracy falls at every step.",
        source=f"{FOLLOW_UP}, tables 1-3; {BITDISTILLER}, main table",
        published=printed_steps,
        test=judge_monotone,
    ),
    Claim(
        id="keeps-most",
        sentence="Students of 3 and of 2 bits keep most of the accuracy of full precision.",
        source=f"{FOLLOW_UP}, tables 1-3; {BITDISTILLER}, main table",
        published=printed_retention,
        test=judge_keeps_most,
    ),
    Claim(
        id="one-bit-chance",
        sentence="At 1 bit task accuracy is no more than two standard errors above chance.",
        source=f"{FOLLOW_UP}, section 6.2 and tables 1-3",
        published=printed_excess,
        test=judge_one_bit_chance,
    ),
    Claim(
        id="one-bit-perplexity",
        sentence="At 1 bit perplexity is at least ten times that of 2 bits.",
        source=f"{FOLLOW_UP}, section 6.2 and tables 1-3",
        published=printed_collapse,
        test=judge_one_bit_perplexity,
    ),
)


# --- figures --------------------------------------------------------------------------------------------------------


def figures(report: StudyReport) -> dict[str, "Drawing"]:
    """Perplexity, accuracy and retention against bits: measured here, and as the papers print them."""
    rows = report.frame()
    return _perplexity(rows) | _mean_accuracy(rows, report.chance) | _retention(rows)


def _perplexity(rows: pd.DataFrame) -> dict[str, "Drawing"]:
    from bitdistiller.report.figures import measured_panel, published_panel

    perplexity = rows[(rows["kind"] == "mean") & (rows["metric"] == "perplexity")]["task"].iloc[0]
    return {
        "perplexity": measured_panel(
            rows,
            [("perplexity", "")],
            perplexity,
            "perplexity",
            log=True,
            caption="Perplexity against bits (log axis). Small points are seeds, large ones their geometric mean with "
            "its 95 % interval.",
        ),
        "perplexity-published": published_panel(
            rows,
            "perplexity",
            "wikitext-2",
            "perplexity",
            log=True,
            caption="Perplexity against bits as printed in the papers: other models, WikiText-2.",
        ),
    }


def _mean_accuracy(rows: pd.DataFrame, chance: dict[str, float]) -> dict[str, "Drawing"]:
    from bitdistiller.report.figures import measured_panel, published_panel

    printed = rows[(rows["source"] == "followup_bits.csv") & (rows["task"].isin(CHANCE))]
    return {
        "accuracy": measured_panel(
            rows,
            [("acc", "")],
            MEAN,
            "mean accuracy",
            chance=sum(chance.values()) / len(chance),
            caption="Mean accuracy over tasks against bits. Small points are seeds, large ones their mean with its "
            "95 % interval; the dashed line is chance.",
        ),
        "accuracy-published": published_panel(
            rows,
            "acc",
            MEAN,
            "mean accuracy",
            chance=chance_of(printed["task"].unique()),
            caption="Mean accuracy over tasks against bits as printed in the papers: other models, other tasks.",
        ),
    }


def _retention(rows: pd.DataFrame) -> dict[str, "Drawing"]:
    from bitdistiller.report.figures import measured_panel, published_panel

    kept = [("retention", "plain"), ("retention_above_chance", "chance subtracted")]
    return {
        "retention": measured_panel(
            rows,
            kept,
            MEAN,
            "share of full precision kept",
            caption="Share of full precision's mean accuracy that is kept: plain, which credits guessing, and with "
            "chance subtracted.",
        ),
        "retention-plain-published": published_panel(
            rows,
            "retention",
            MEAN,
            "share of full precision kept",
            caption="Share of full precision's mean accuracy that is kept, as the follow-up computes it, from the "
            "averages that the papers print. A model that guesses keeps a large share of it.",
        ),
        "retention-published": published_panel(
            rows,
            "retention_above_chance",
            MEAN,
            "share kept, chance subtracted",
            caption="Chance-subtracted retention, computed here from the averages that the papers print.",
        ),
    }
