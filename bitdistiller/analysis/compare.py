"""Claims as data: a measure of two conditions, what is claimed of it, and the verdict that follows.

    test=all_of(
        lower_perplexity("2 bits, asymmetric", "2 bits, none"),
        same_accuracy("T = 2", "T = 5", points=2),
        beside(flip_share("2 bits, asymmetric", "full precision")),
    )

Three concepts. A *measure* reads one number with its uncertainty off the results: a ratio of perplexities, a difference
of accuracies. ``above``, ``below`` and ``within`` claim something of a measure and make a *comparison* of it, decided
by the rules of ``verdict``; the common ones have names of their own. ``all_of`` is the *test* of a claim that
needs all its comparisons: it corrects them together (Holm) and says in a sentence what the numbers are; how many of
them decide is known before there are results, and so is how strict Holm's method will be (``Study.comparisons``). A
measure of a study's own is a function of the results that returns a ``Quantity``.

Bounds and margins are written in the unit that is printed: accuracies in points, perplexities as ratios, so that
``ratio=1.05`` means up to 5 % either way. Conditions are named as in the study's ``conditions()``; all their seeds
count. A condition whose accuracy is not above that of guessing is called so wherever it is compared: "at chance" where
its 95 % interval includes the level of guessing, "below chance" where it lies below. That two models guess equally well
is no finding about them: a claim that their accuracies are the same stays undecided.

"A does not beat B" is a claim of its own, and not the same as "B beats A" or "they are the same":
``no_lower_perplexity`` and ``no_higher_accuracy`` are supported when A is certainly not better by more than a margin
(non-inferiority of B) and contradicted when it certainly is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bitdistiller.analysis.stats import (
    PERPLEXITY_ITEMS,
    Estimate,
    Panel,
    accuracy,
    changed,
    difference_p,
    flips,
    log_perplexity,
    per_token,
    retention,
)
from bitdistiller.analysis.study import Results
from bitdistiller.analysis.verdict import (
    Finding,
    Unit,
    Verdict,
    above_bound,
    below_bound,
    conjunction,
    corrected,
    decisive,
    explain,
    finding,
    format_bound,
    printed,
    undefined,
    unprinted,
    verdict,
    within_margin,
)
from bitdistiller.errors import UserError


@dataclass(frozen=True)
class Quantity:
    """What a measure found: an estimate on the scale of the statistics, and the unit it is printed in.

    ``zero_p`` is the two-sided p that it is zero (a ratio: one), where that means something. ``guessing`` is true where
    it compares models that all guess, so that none of them could have shown what it lost.
    """

    description: str
    estimate: Estimate
    unit: Unit
    zero_p: float | None = None
    guessing: bool = False


# What becomes of a claim that models that guess are the same.
NO_EVIDENCE = {"outcome": "undecided", "p": None, "evidence": None, "needs": "models that do better than guessing"}

# A measure the data do not define is returned as its undecided finding.
Measure = Callable[[Results], Quantity | Finding]


@dataclass(frozen=True)
class Comparison:
    """A measure and how it is judged; called with results it gives its finding.

    Attributes:
        decide: the rule; None for a comparison beside a claim.
        margin: whether it claims that there is no difference, or no gain, beyond a margin.
        where: conditions without which it is left out.
    """

    measure: Measure
    decide: Callable[[Quantity], Finding] | None
    margin: bool = False
    where: tuple[str, ...] = ()

    def __call__(self, results: Results) -> Finding:
        quantity = self.measure(results)
        if isinstance(quantity, Finding):
            return quantity if self.decide else quantity.model_copy(update={"outcome": None})
        if self.decide:
            return self.decide(quantity)
        return finding(quantity.description, quantity.estimate, quantity.unit, None, quantity.zero_p)


# --- measures -------------------------------------------------------------------------------------------------------


def perplexity_ratio(condition: str, over: str, task: str | None = None) -> Measure:
    """Perplexity of a condition over that of another, on the same documents."""

    def measure(results: Results) -> Quantity:
        ratio = log_perplexity(
            [_documents(results, name, PERPLEXITY_ITEMS, task) for name in (condition, over)], [1, -1]
        )
        return Quantity(f"perplexity of {condition} over {over}", ratio, "times", ratio.p_value())

    return measure


def accuracy_difference(condition: str, minus: str, tasks: Sequence[str] | None = None) -> Measure:
    """Mean accuracy of a condition minus that of another, on the same items; exact p for single runs."""

    def measure(results: Results) -> Quantity:
        pair = [results.panel(name, "acc", tasks) for name in (condition, minus)]
        levels = [_level(results, name, tasks) for name in (condition, minus)]
        first, second = (name + level for name, level in zip((condition, minus), levels, strict=True))
        difference = accuracy(pair, [1, -1])
        return Quantity(
            f"accuracy of {first} minus {second}", difference, "points", difference_p(*pair), guessing=all(levels)
        )

    return measure


def above_chance(condition: str, tasks: Sequence[str] | None = None) -> Measure:
    """Mean accuracy of a condition minus that of guessing."""

    def measure(results: Results) -> Quantity:
        excess = _excess(results, condition, tasks)
        return Quantity(f"accuracy of {condition} minus chance", excess, "points", excess.p_value())

    return measure


def retained(condition: str, full: str, tasks: Sequence[str] | None = None) -> Measure:
    """Share of full precision's accuracy above chance that a condition keeps; not defined for one at chance."""

    def measure(results: Results) -> Quantity | Finding:
        student, reference = (results.panel(name, "acc", tasks) for name in (condition, full))
        kept = retention(student, reference, _chance(results, tasks))
        name = f"chance-subtracted retention of {condition}"
        return Quantity(name, kept, "share") if kept else undefined(name, "share", len(student.keys), student.seeds)

    return measure


def flip_share(condition: str, full: str, tasks: Sequence[str] | None = None) -> Measure:
    """Share of items whose answer is not full precision's."""

    def measure(results: Results) -> Quantity:
        share = flips(*(results.panel(name, "choice", tasks) for name in (condition, full)))
        return Quantity(f"flips of {condition} against {full}", share, "share")

    return measure


def flip_difference(condition: str, minus: str, full: str, tasks: Sequence[str] | None = None) -> Measure:
    """Share of items flipped by a condition minus that of another, in points."""

    def measure(results: Results) -> Quantity:
        reference = results.panel(full, "choice", tasks)
        pair = [changed(results.panel(name, "choice", tasks), reference) for name in (condition, minus)]
        difference = accuracy(pair, [1, -1])
        return Quantity(f"flips of {condition} minus {minus}", difference, "points", difference_p(*pair))

    return measure


def kl_difference(condition: str, minus: str, task: str | None = None) -> Measure:
    """KL divergence to the teacher of a condition minus that of another, nats a token."""
    return _token_difference("kl", "KL to the teacher", "nats", condition, minus, task)


def agreement_difference(condition: str, minus: str, task: str | None = None) -> Measure:
    """Share of positions whose likeliest token is the teacher's, a condition minus another, in points."""
    return _token_difference("agreement", "top-1 agreement", "points", condition, minus, task)


def _token_difference(metric: str, words: str, unit: Unit, condition: str, minus: str, task: str | None) -> Measure:
    def measure(results: Results) -> Quantity:
        difference = per_token([_documents(results, name, metric, task) for name in (condition, minus)], [1, -1])
        return Quantity(f"{words} of {condition} minus {minus}", difference, unit, difference.p_value())

    return measure


def _documents(results: Results, condition: str, metric: str, task: str | None) -> Panel:
    return results.panel(condition, metric, [results.text(task) if task else results.perplexity_task])


def _chance(results: Results, tasks: Sequence[str] | None) -> float:
    levels = [results.chance[task] for task in tasks or results.chance]
    return sum(levels) / len(levels)


def _excess(results: Results, condition: str, tasks: Sequence[str] | None) -> Estimate:
    return accuracy([results.panel(condition, "acc", tasks)], [1]).minus(_chance(results, tasks))


def _level(results: Results, condition: str, tasks: Sequence[str] | None) -> str:
    """What to say after the name of a condition that is no better than guessing; of any other, nothing."""
    excess = _excess(results, condition, tasks)
    if excess.low > 0:
        return ""
    return " (below chance)" if excess.high < 0 else " (at chance)"


# --- comparisons ----------------------------------------------------------------------------------------------------


def above(measure: Measure, bound: float) -> Comparison:
    """The claim that a measure lies above ``bound``, in its printed unit."""
    return _bounded(measure, "above", above_bound, bound)


def below(measure: Measure, bound: float) -> Comparison:
    """The claim that a measure lies below ``bound``, in its printed unit."""
    return _bounded(measure, "below", below_bound, bound)


def within(measure: Measure, margin: float) -> Comparison:
    """The claim of no difference: a measure within ``margin`` of zero (a ratio: of one), by an equivalence test.

    Of models that guess it is undecided, unless they certainly differ by more.

    Raises:
        UserError: when judged, for a margin that is not above zero (a ratio: above one).
    """

    def decide(quantity: Quantity) -> Finding:
        inner = unprinted(margin, quantity.unit)
        name = f"{quantity.description} (claimed within {format_bound(margin, quantity.unit)} either way)"
        if inner <= 0:
            raise UserError(
                f"{name}: a margin must be above {format_bound(printed(0.0, quantity.unit), quantity.unit)}"
            )
        found = within_margin(name, quantity.estimate, quantity.unit, inner)
        if quantity.guessing and found.outcome != "contradicted":
            return found.model_copy(update=NO_EVIDENCE)
        return found

    return Comparison(measure, decide, margin=True)


def beside(measure: Measure, where: tuple[str, ...] = ()) -> Comparison:
    """A measure to print beside a claim, at scales that have run the conditions ``where``; it decides nothing."""
    return Comparison(measure, decide=None, where=where)


def _bounded(measure: Measure, side: str, rule: Callable[..., Finding], bound: float) -> Comparison:
    def decide(quantity: Quantity) -> Finding:
        inner = unprinted(bound, quantity.unit)
        name = f"{quantity.description} (claimed {side} {format_bound(bound, quantity.unit)})"
        return rule(name, quantity.estimate, quantity.unit, inner, quantity.zero_p if inner == 0 else None)

    return Comparison(measure, decide)


def lower_perplexity(better: str, worse: str, task: str | None = None) -> Comparison:
    """One condition has a lower perplexity than another."""
    return below(perplexity_ratio(better, worse, task), 1)


def higher_accuracy(better: str, worse: str, tasks: Sequence[str] | None = None) -> Comparison:
    """One condition has a higher mean accuracy than another."""
    return above(accuracy_difference(better, worse, tasks), 0)


def perplexity_ratio_at_least(worse: str, better: str, ratio: float, task: str | None = None) -> Comparison:
    """The perplexity of one condition is at least ``ratio`` times that of another."""
    return above(perplexity_ratio(worse, better, task), ratio)


def same_perplexity(first: str, second: str, ratio: float, task: str | None = None) -> Comparison:
    """Two conditions have the same perplexity, up to ``ratio`` either way."""
    return within(perplexity_ratio(first, second, task), ratio)


def same_accuracy(first: str, second: str, points: float, tasks: Sequence[str] | None = None) -> Comparison:
    """Two conditions have the same mean accuracy, up to ``points`` either way."""
    return within(accuracy_difference(first, second, tasks), points)


def no_lower_perplexity(condition: str, than: str, ratio: float, task: str | None = None) -> Comparison:
    """A condition does not beat another in perplexity: the other's is at most ``ratio`` times its own."""
    return replace(below(perplexity_ratio(than, condition, task), ratio), margin=True)


def no_higher_accuracy(condition: str, than: str, points: float, tasks: Sequence[str] | None = None) -> Comparison:
    """A condition does not beat another in accuracy: it is at most ``points`` above it."""
    return replace(below(accuracy_difference(condition, than, tasks), points), margin=True)


# --- the test of a claim --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AllOf:
    """The test that ``all_of`` makes."""

    comparisons: tuple[Comparison, ...]

    @property
    def deciding(self) -> int:
        """How many of its comparisons decide."""
        return sum(comparison.decide is not None for comparison in self.comparisons)

    @property
    def margin(self) -> bool:
        """Whether one of them claims that there is no difference, or no gain, beyond a margin."""
        return any(comparison.margin for comparison in self.comparisons)

    def __call__(self, results: Results) -> Verdict:
        there = [compare for compare in self.comparisons if set(compare.where) <= set(results.params.conditions())]
        findings = corrected([compare(results) for compare in there])
        deciding = [part for part in findings if part.outcome is not None]
        if not deciding:
            raise UserError("a claim needs a comparison that decides it; all of its comparisons stand beside it")
        shown = decisive(deciding)
        return verdict(shown, conjunction(deciding), explain(deciding, shown), findings if len(findings) > 1 else [])


def all_of(*comparisons: Comparison) -> AllOf:
    """The test of a claim that needs all its comparisons, corrected together.

    The effect shown is the one that the outcome hangs on: the weakest comparison, or the clearest contradiction.

    Raises:
        UserError: when judged, if all comparisons stand beside the claim.
    """
    return AllOf(comparisons)
