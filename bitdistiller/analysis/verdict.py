"""What a paper claims, and what our numbers say about it.

A claim is one sentence of a paper with a test: a function from results to a verdict. The outcome follows from
estimates and their intervals by the rules below and nothing else, so the same results always give the same verdict,
and synthetic results can drive every claim to each outcome:

    against a bound   supported when the 95 % interval lies on the claimed side, contradicted when it lies on the other
    a direction       the same against zero, and Holm's adjusted p must agree when a claim makes several comparisons
    several parts     supported when every part is, contradicted when one part is, undecided otherwise

"Undecided" is a finding: at this budget the data allow both answers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bitdistiller.analysis.stats import ALPHA, Estimate, Sample, basis, holm
from bitdistiller.results import Record

if TYPE_CHECKING:
    from bitdistiller.analysis.study import Results

Outcome = Literal["supported", "contradicted", "undecided"]
Unit = Literal["points", "times", "share"]


class PublishedNumber(Record):
    """One number of a paper, or computed from a paper's printed numbers, in the unit of the claim's effect.

    ``file`` is the CSV under ``reports/published`` it was read from.
    """

    model: str
    value: float
    unit: Unit
    description: str
    file: str


class Finding(Record):
    """An effect with its 95 % interval and what it decides.

    ``outcome`` is None for a comparison that stands beside the claim and decides nothing. ``unit`` is ``points``
    (percentage points), ``times`` (a ratio) or ``share``; ``p`` is two-sided and, where there are several comparisons,
    Holm-adjusted. ``n`` counts what ``sample`` names. The numbers are None where the data cannot define the effect.
    """

    description: str
    outcome: Outcome | None
    effect: float | None
    unit: Unit
    low: float | None
    high: float | None
    p: float | None
    n: int
    seeds: int
    sample: Sample

    @property
    def text(self) -> str:
        """``1.8 points [0.4, 3.2]``, for tables and sentences."""
        if self.effect is None:
            return "not defined"
        low, high = (format_effect(bound, self.unit, bare=True) for bound in (self.low, self.high))
        return f"{format_effect(self.effect, self.unit)} [{low}, {high}]"

    @property
    def basis(self) -> str:
        """What the interval covers, as a phrase."""
        return basis(self.sample, self.seeds)


class Verdict(Finding):
    """The outcome of a claim: its deciding effect, one sentence from the numbers, and the comparisons behind it."""

    outcome: Outcome
    explanation: str
    parts: list[Finding]


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper and the test that decides it.

    ``source`` names paper and section or table; ``published`` reads the paper's own effect from the CSV files in a
    folder; ``test`` turns results into a verdict.
    """

    id: str
    sentence: str
    source: str
    published: Callable[[Path], list[PublishedNumber]]
    test: Callable[["Results"], Verdict]


class JudgedClaim(Record):
    """A claim with its published numbers and its verdict, as stored."""

    id: str
    sentence: str
    source: str
    published: list[PublishedNumber]
    verdict: Verdict


def format_effect(value: float, unit: Unit, bare: bool = False) -> str:
    """A number in the precision that its unit deserves; ``bare`` leaves the unit away."""
    if unit == "times":
        return digits(value, 0 if value >= 100 else 1 if value >= 10 else 2) + ("" if bare else "×")
    if unit == "points":
        return digits(value, 1) + ("" if bare else " points")
    return digits(value, 2)


def digits(value: float, places: int) -> str:
    """A decimal number for people: thousands separated, a real minus sign, and no minus before a zero."""
    text = f"{value:,.{places}f}"
    return text.replace("-", "−") if text.strip("-0.,") else text.lstrip("-")


def finding(
    description: str, estimate: Estimate, unit: Unit, outcome: Outcome | None, p: float | None = None
) -> Finding:
    """Store an estimate in its unit: accuracies become points, log ratios become ratios, shares stay."""
    convert = {"points": lambda x: 100 * x, "times": _exp, "share": float}[unit]
    return Finding(
        description=description,
        outcome=outcome,
        unit=unit,
        p=p,
        n=estimate.n,
        seeds=estimate.seeds,
        sample=estimate.sample,
        effect=convert(estimate.value),
        low=convert(estimate.low),
        high=convert(estimate.high),
    )


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


def undefined(description: str, unit: Unit, n: int, seeds: int) -> Finding:
    """A comparison whose effect the data do not define; it is undecided."""
    return Finding(
        description=description,
        outcome="undecided",
        effect=None,
        unit=unit,
        low=None,
        high=None,
        p=None,
        n=n,
        seeds=seeds,
        sample="items",
    )


def at_least(estimate: Estimate, bound: float) -> Outcome:
    """Outcome of "at least ``bound``", by the 95 % interval."""
    if estimate.low >= bound:
        return "supported"
    return "contradicted" if estimate.high < bound else "undecided"


def directions(comparisons: Sequence[tuple[str, Estimate, Unit, float]]) -> list[Finding]:
    """Several claims of the kind "this is above zero", corrected together.

    Args:
        comparisons: description, estimate (positive in the claimed direction), unit and unadjusted p of each.
    """
    findings = []
    adjusted = holm([p for *_, p in comparisons])
    for (description, estimate, unit, _), p in zip(comparisons, adjusted, strict=True):
        outcome: Outcome = "undecided"
        if p <= ALPHA and estimate.low > 0:
            outcome = "supported"
        elif p <= ALPHA and estimate.high < 0:
            outcome = "contradicted"
        findings.append(finding(description, estimate, unit, outcome, p))
    return findings


def conjunction(parts: Sequence[Finding]) -> Outcome:
    """Outcome of a claim that needs all its parts."""
    outcomes = {part.outcome for part in parts}
    if "contradicted" in outcomes:
        return "contradicted"
    return "supported" if outcomes == {"supported"} else "undecided"


def verdict(deciding: Finding, outcome: Outcome, explanation: str, parts: Sequence[Finding] = ()) -> Verdict:
    """A verdict whose effect is that of the deciding comparison."""
    fields = deciding.model_dump() | {"outcome": outcome}
    return Verdict(**fields, explanation=explanation, parts=list(parts))
