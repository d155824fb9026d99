"""What a paper claims, and what our numbers say about it.

A claim is one sentence of a paper with a test: a function from results to a verdict. The outcome follows from
estimates and their intervals by the rules below and nothing else, so the same results always give the same verdict,
and synthetic results can drive every claim to each outcome:

    against a bound   supported when the 95 % interval lies on the claimed side, contradicted when it lies on the other
    a direction       the same against zero; where there is an exact p, it must agree
    no difference     supported when the 90 % interval lies within the margin (two one-sided tests at 5 %), contradicted
                      when the 95 % interval lies beyond it; never because a test found nothing, nor because the
                      models compared all guess (``compare.within``)
    several parts     supported when every part is, contradicted when one part is, undecided otherwise

Where no item tells two conditions apart, which of them is better is not defined, and such a direction is undecided. A
margin can still be decided, by how rare the items must be that would tell them apart (``stats``).

A study makes many comparisons, so by chance alone one in twenty would decide a claim. Each comparison that decides
keeps the unadjusted p of its decision as ``Evidence``: two-sided against its bound, or that of the equivalence test.
Holm's method adjusts all of them together, first within a claim (``corrected``), then within the study
(``family_wise``, which starts from the unadjusted ones again). One whose adjusted p is above 5 % becomes undecided, and
the outcome of its claim follows from its parts anew, and so does the sentence that counts them (``explain``). Nothing
undecided is ever decided by that. Comparisons beside a claim, which decide nothing, what is not defined, and rules that
rest on no p are no part of the family.

"Undecided" is a finding: at this budget the data allow both answers. ``Finding.needs`` says what sample would do.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scipy import stats

from bitdistiller.analysis.power import needed
from bitdistiller.analysis.stats import ALPHA, Estimate, Sample, basis, holm
from bitdistiller.errors import UserError
from bitdistiller.results import Record

if TYPE_CHECKING:
    from bitdistiller.analysis.study import Results

Outcome = Literal["supported", "contradicted", "undecided"]
Unit = Literal["points", "times", "percent", "share", "nats"]

_SUFFIX: dict[Unit, str] = {"points": " points", "times": "×", "percent": " %", "share": "", "nats": " nats"}


class PublishedNumber(Record):
    """One number of a paper, or computed from a paper's printed numbers, in the unit of the claim's effect.

    ``file`` is the CSV under ``reports/published`` it was read from.
    """

    model: str
    value: float
    unit: Unit
    description: str
    file: str


class Evidence(Record):
    """The test behind an outcome: its unadjusted p, one- or two-sided, and the sample it came from."""

    p: float
    tails: Literal[1, 2]
    df: float
    seed_share: float


class Finding(Record):
    """An effect with its 95 % interval and what it decides.

    ``outcome`` is None for a comparison that stands beside the claim and decides nothing. ``unit`` is ``points``
    (percentage points), ``times`` (a ratio), ``percent`` (a ratio minus one), ``share`` or ``nats``; ``p`` is
    two-sided, or that of an equivalence test, and Holm-adjusted where it decides. ``n`` counts what ``sample`` names.
    The numbers are None where the data cannot define the effect. ``needs`` is the sample that would decide what is
    undecided.
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
    evidence: Evidence | None = None
    needs: str | None = None

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
    test: Callable[["Results"], Verdict]
    published: Callable[[Path], list[PublishedNumber]] = lambda folder: []


class JudgedClaim(Record):
    """A claim with its published numbers and its verdict, as stored."""

    id: str
    sentence: str
    source: str
    published: list[PublishedNumber]
    verdict: Verdict


def format_effect(value: float, unit: Unit, bare: bool = False) -> str:
    """A number in the precision that its unit deserves; ``bare`` leaves the unit away.

    Ratios near one and nats near zero get a decimal more, since that is where what is told apart is small; ratios below
    a tenth get two digits that are not zero.
    """
    places = {"points": 1, "percent": 1, "share": 2, "nats": 4 if abs(value) < 0.01 else 3}
    decimals = _ratio_places(value) if unit == "times" else places[unit]
    return digits(value, decimals) + ("" if bare else _SUFFIX[unit])


def _ratio_places(value: float) -> int:
    if 0 < value < 0.1:
        return 1 - math.floor(math.log10(value))
    if abs(value - 1) < 0.1:
        return 3
    return 0 if value >= 100 else 1 if value >= 10 else 2


def format_bound(value: float, unit: Unit) -> str:
    """A bound as it is written in a study, with its unit."""
    suffix = " point" if unit == "points" and abs(value) == 1 else _SUFFIX[unit]
    return f"{value:g}".replace("-", "−") + suffix


def digits(value: float, places: int) -> str:
    """A decimal number for people: thousands separated, a real minus sign, and no minus before a zero."""
    text = f"{value:,.{places}f}"
    return text.replace("-", "−") if text.strip("-0.,") else text.lstrip("-")


def finding(
    description: str,
    estimate: Estimate,
    unit: Unit,
    outcome: Outcome | None,
    p: float | None = None,
    tails: Literal[1, 2] = 2,
    needs: str | None = None,
) -> Finding:
    """Store an estimate in its unit, and with it the test that decides; a direction that no item shows is undefined.

    Args:
        estimate: a share for ``points`` and ``share``, a log ratio for ``times`` and ``percent``.
        outcome: None for a comparison beside the claim.
        p: unadjusted p of the decision; None where the rule rests on none.
        tails: 1 for an equivalence test.
        needs: sample that would decide; left out, it follows from p when the study is corrected.
    """
    if estimate.alike and p == 1:  # against zero; against any other bound it is less
        name, needs = f"{description} (no item tells them apart)", "items that tell them apart"
        missing = undefined(name, unit, estimate.n, estimate.seeds)
        return missing.model_copy(update={"outcome": outcome, "needs": needs if outcome else None})
    decides = outcome is not None and p is not None
    spread = {"df": estimate.df, "seed_share": estimate.seed_share}
    return Finding(
        description=description,
        outcome=outcome,
        unit=unit,
        p=p,
        n=estimate.n,
        seeds=estimate.seeds,
        sample=estimate.sample,
        effect=printed(estimate.value, unit),
        low=printed(estimate.low, unit),
        high=printed(estimate.high, unit),
        evidence=Evidence(p=p, tails=tails, **spread) if decides else None,
        needs=needs,
    )


def printed(value: float, unit: Unit) -> float:
    """A number on the scale of the statistics (shares, log ratios) in its unit."""
    if unit == "times":
        return _exp(value)
    if unit == "percent":
        return 100 * (_exp(value) - 1)
    return 100 * value if unit == "points" else float(value)


def unprinted(value: float, unit: Unit) -> float:
    """A number in its unit, on the scale of the statistics: the inverse of ``printed``.

    Raises:
        UserError: a ratio that is not above zero.
    """
    if unit in ("times", "percent"):
        ratio = value if unit == "times" else 1 + value / 100
        if ratio <= 0:
            raise UserError(f"{format_bound(value, unit)} is no ratio; ratios are above 0×, changes above −100 %")
        return math.log(ratio)
    return value / 100 if unit == "points" else float(value)


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


def above_bound(
    description: str, estimate: Estimate, unit: Unit, bound: float = 0.0, p: float | None = None
) -> Finding:
    """The claim that an estimate lies above ``bound`` (on the estimate's own scale), not yet corrected.

    Args:
        p: two-sided p against ``bound`` where there is a better test than t's; it and the interval must agree.
    """
    return _against_bound(description, estimate, unit, bound, p, above=True)


def below_bound(
    description: str, estimate: Estimate, unit: Unit, bound: float = 0.0, p: float | None = None
) -> Finding:
    """The claim that an estimate lies below ``bound``: the outcomes of ``above_bound``, exchanged."""
    return _against_bound(description, estimate, unit, bound, p, above=False)


def _against_bound(
    description: str, estimate: Estimate, unit: Unit, bound: float, p: float | None, above: bool
) -> Finding:
    p = estimate.p_value(bound) if p is None else p
    outcome: Outcome = "undecided"
    if p <= ALPHA and not estimate.low <= bound <= estimate.high:
        outcome = "supported" if (estimate.low > bound) == above else "contradicted"
    return finding(description, estimate, unit, outcome, p)


def equivalent(estimate: Estimate, margin: float) -> Outcome:
    """Outcome of "within ``margin`` of zero, on either side", by two one-sided tests."""
    if estimate.equivalence_p(margin) <= ALPHA:
        return "supported"
    return "contradicted" if estimate.low > margin or estimate.high < -margin else "undecided"


def within_margin(description: str, estimate: Estimate, unit: Unit, margin: float) -> Finding:
    """The claim that an estimate lies within ``margin`` of zero (on the estimate's own scale), not yet corrected.

    Its p is that of the equivalence test; of an estimate beyond the margin, the two-sided one against the nearer end.
    """
    if abs(estimate.value) > margin:
        p, tails = estimate.p_value(math.copysign(margin, estimate.value)), 2
    else:
        p, tails = estimate.equivalence_p(margin), 1
    return finding(description, estimate, unit, equivalent(estimate, margin), p, tails)


def directions(comparisons: Sequence[tuple[str, Estimate, Unit, float]]) -> list[Finding]:
    """Several claims of the kind "this is above zero", corrected together.

    Args:
        comparisons: description, estimate (positive in the claimed direction), unit and unadjusted p of each.
    """
    return corrected(
        [above_bound(description, estimate, unit, 0.0, p) for description, estimate, unit, p in comparisons]
    )


def corrected(findings: Sequence[Finding]) -> list[Finding]:
    """Findings with Holm-adjusted p; where that is above ``ALPHA`` they are undecided, and say what they need."""
    family = [part.evidence.p for part in findings if part.evidence]
    adjusted = holm(family) if family else []
    # The one of them that comes next has to pass at ALPHA over the number that have not passed.
    level = ALPHA / max(1, sum(p > ALPHA for p in adjusted))
    p_values = iter(adjusted)
    return [_adjust(part, next(p_values), level) if part.evidence else part for part in findings]


def _adjust(part: Finding, p: float, level: float) -> Finding:
    outcome = part.outcome if p <= ALPHA else "undecided"
    needs = _needed(part, part.evidence, level) if outcome == "undecided" else None
    return part.model_copy(update={"p": p, "outcome": outcome, "needs": needs})


def _needed(part: Finding, evidence: Evidence, level: float) -> str:
    t = float(stats.t.isf(evidence.p / evidence.tails, evidence.df))
    in_errors = Estimate(t, 1.0, evidence.df, part.n, part.seeds, part.sample, evidence.seed_share)
    return needed(in_errors, 0.0, evidence.tails, level)


def conjunction(parts: Sequence[Finding]) -> Outcome:
    """Outcome of a claim that needs all its parts; those beside the claim do not count."""
    outcomes = {part.outcome for part in parts} - {None}
    if "contradicted" in outcomes:
        return "contradicted"
    return "supported" if outcomes == {"supported"} else "undecided"


def decisive(parts: Sequence[Finding]) -> Finding:
    """The part that a conjunction hangs on: the clearest contradiction, or else the weakest part of its outcome."""
    outcome = conjunction(parts)
    choose = min if outcome == "contradicted" else max
    return choose(
        (part for part in parts if part.outcome == outcome), key=lambda part: 1.0 if part.p is None else part.p
    )


def explain(deciding: Sequence[Finding], shown: Finding) -> str:
    """A sentence from the numbers: the part that is shown, and how many parts of several go which way."""
    said = f"{shown.description} is {shown.text} over {shown.basis}."
    if len(deciding) == 1:
        return said[0].upper() + said[1:]
    outcomes = [part.outcome for part in deciding]
    held, against = outcomes.count("supported"), outcomes.count("contradicted")
    return (
        f"{held} of {len(outcomes)} comparisons go the claimed way and {against} the other way after Holm's "
        f"correction; the {'clearest against the claim' if against else 'weakest'}: {said}"
    )


def verdict(deciding: Finding, outcome: Outcome, explanation: str, parts: Sequence[Finding] = ()) -> Verdict:
    """A verdict whose effect is that of the deciding comparison.

    ``parts`` that have an outcome make up the claim, as a conjunction, and the deciding comparison is one of them;
    without any, it is the claim.
    """
    fields = deciding.model_dump() | {"outcome": outcome}
    return Verdict(**fields, explanation=explanation, parts=list(parts))


def family_wise(claims: Sequence[JudgedClaim]) -> list[JudgedClaim]:
    """The claims of a study, all comparisons that decide them corrected together (see the module's docstring)."""
    groups = [_deciding(claim.verdict) for claim in claims]
    family = corrected([part for group in groups for part in group])
    size = sum(part.evidence is not None for part in family)
    rest = iter(family)
    return [
        claim.model_copy(update={"verdict": _revised(claim.verdict, [next(rest) for _ in group], size)})
        for claim, group in zip(claims, groups, strict=True)
    ]


def _deciding(claim: Verdict) -> list[Finding]:
    """Parts that have an outcome, or else the verdict's own comparison."""
    own = Finding.model_validate(claim.model_dump(include=set(Finding.model_fields)))
    return [part for part in claim.parts if part.outcome is not None] or [own]


def _revised(claim: Verdict, deciding: list[Finding], size: int) -> Verdict:
    """The verdict after its deciding comparisons were corrected in a family of ``size``.

    Where that changed one of several parts, the claim's sentence is made anew: it counted and named what was before.
    """
    outcome = conjunction(deciding)
    held = (part for part in deciding if part.description == claim.description and part.outcome == outcome)
    shown = next(held, None) or decisive(deciding)
    lost = [new.description for old, new in zip(_deciding(claim), deciding, strict=True) if old.outcome != new.outcome]
    explanation = claim.explanation
    if lost:
        explanation = explain(deciding, shown) if len(deciding) > 1 else explanation
        explanation += (
            f" Holm's correction over all {size} comparisons of the study leaves undecided: {'; '.join(lost)}."
        )
    rest = iter(deciding)
    parts = [part if part.outcome is None else next(rest) for part in claim.parts]
    return verdict(shown, outcome, explanation, parts)
