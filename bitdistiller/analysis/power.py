r"""What a design can see: the smallest effect it detects, and the sample that would decide what it left open.

**Before the runs**, from design values alone: how many items and documents are scored, how often two models are
assumed to disagree, how far documents are assumed to scatter. An effect is detectable when a two-sided test at 5 %
finds it in 80 % of experiments.

    accuracy     Two models disagree about a share psi of n paired items and differ by d (Connor 1987, Biometrics 43):
                     sqrt(n) d = z_{1 - alpha/2} sqrt(psi) + z_{power} sqrt(psi - d^2),
                 solved for d, which is at most psi; where n psi, the number of items they disagree about, is below
                 about 7, there is no solution. Accuracy averaged over T tasks of n_1 ... n_T items varies as over
                 n = T^2 / (1/n_1 + ... + 1/n_T) items of one task.
    perplexity   exp((z_{1 - alpha/2} + z_{power}) spread / sqrt(documents)), where ``spread`` is the standard
                 deviation over documents of the difference of two models' mean log-likelihood a token.

A claim of no difference is another question: the smaller the margin that a design can establish, the better. Two
one-sided tests at 5 % reject both ends of a margin in 80 % of experiments in which the true difference is zero, if the
margin is at least (Schuirmann 1987, J. Pharmacokinet. Biopharm. 15; paired proportions: Liu et al. 2002, Stat. Med. 21)

    accuracy     (z_{1 - alpha} + z_{(1 + power)/2}) sqrt(psi / n), Connor's variance at d = 0
    perplexity   exp((z_{1 - alpha} + z_{(1 + power)/2}) spread / sqrt(documents)).

Within a smaller margin the claim is likely to stay undecided even where nothing differs. That one condition is not
better by more than a margin (non-inferiority, tested on one side) takes a little less.

Disagreement matters more than accuracy: the same 1,200 items detect 3.6 points where models disagree about a fifth of
them and 1.8 where they disagree about a twentieth (Resolution Diagnostics for Paired LLM Evaluation, arXiv
2605.30315, counts leaderboards whose ranks fall short of this).

**After the runs**, for what stayed undecided. ``rho`` is the share of the variance that is due to seeds
(``Estimate.seed_share``), t the distance from what is asked in standard errors. With n' items and s' seeds the variance
is (1 - rho) n/n' + rho S/s' of today's, and the true effect, if it is the measured one, is found in 80 % of experiments
where

    (1 - rho) n/n' + rho S/s'  <=  (t / (t_{1 - level/tails, df} + t_{power, df}))^2.

More items alone are named when seeds take at most half of what is allowed; more seeds alone when items do; otherwise
both, in proportion. Degrees of freedom grow with the number of seeds minus one. One seed cannot show its own spread,
so there the answer holds for that seed. An equivalence test has to pass on both sides, so for a difference measured
near zero its power is nearer 60 % than 80 %.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from math import exp, inf, sqrt

from scipy import stats
from scipy.optimize import brentq

from bitdistiller.analysis.stats import ALPHA, Estimate
from bitdistiller.config import EvaluationParams, entry
from bitdistiller.errors import UserError
from bitdistiller.results import Record

POWER = 0.8
REACH = 100  # a sample so many times larger is out of reach


class Detectable(Record):
    """Smallest effects that a design detects, and what that assumes.

    ``accuracy_points`` and ``perplexity_ratio`` (above 1; its inverse is as detectable) are None where nothing is
    scored, or where so few items differ that no effect is detectable. ``margin_points`` and ``margin_ratio`` are the
    smallest margins within which no difference can be established; None where the study claims nothing of the kind.
    """

    accuracy_points: float | None
    perplexity_ratio: float | None
    margin_points: float | None = None
    margin_ratio: float | None = None
    assumptions: str

    @property
    def text(self) -> str:
        """``3.6 points of accuracy and a perplexity ratio of 1.02``, and the smallest margins where there are any."""
        effects = _sizes(self.accuracy_points, self.perplexity_ratio) or "no effect of any size"
        margins = _sizes(self.margin_points, self.margin_ratio)
        return (
            f"{effects}; smallest margin within which no difference can be established: {margins}"
            if margins
            else effects
        )


def _sizes(points: float | None, ratio: float | None) -> str:
    parts = [] if points is None else [f"{points:.1f} points of accuracy"]
    return " and ".join(parts + ([] if ratio is None else [f"a perplexity ratio of {ratio:.3g}"]))


@dataclass(frozen=True)
class Design:
    """What a study assumes before its runs; arguments of ``detectable``.

    ``comparisons`` is the number of comparisons that decide its claims. Left out, it is counted in the claims, which
    is possible where ``all_of`` made all their tests; else it is a number, or a function that finds it in what the
    study reads (``Results``), without looking at a score.
    """

    disagreement: float = 0.2
    spread: float = 0.1
    comparisons: int | Callable[..., int] | None = None


def detectable(
    evaluation: EvaluationParams,
    disagreement: float = 0.2,
    spread: float = 0.1,
    tokens_per_document: int = 140,
    perplexity: str | None = None,
    comparisons: int = 1,
    margins: bool = False,
) -> Detectable:
    """Smallest effects that an evaluation detects between two single runs, from its parameters alone.

    Args:
        evaluation: ``limit`` is taken as each task's number of items; a benchmark that is smaller detects less.
        disagreement: assumed share of items that exactly one of two models has right.
        spread: assumed standard deviation over documents of the two models' difference, nats a token.
        tokens_per_document: assumed mean length, which with ``max_tokens`` gives the number of documents (parameters
            hold no number of documents). The passages of the held-out texts have 130 to 140 tokens; a text that is one
            document is resampled by windows, so there it is the window.
        perplexity: the text to judge, where there are several.
        comparisons: number of comparisons that Holm's method corrects together; the first of them has to pass at 5 %
            divided by it.
        margins: whether to state the smallest margins of claims of no difference too.

    Raises:
        UserError: several texts and none named, or one named that is not there.
    """
    level = ALPHA / comparisons
    words: list[str] = []
    points = ratio = margin_points = margin_ratio = None
    if evaluation.tasks:
        items = _effective_items([task.limit for task in evaluation.tasks.values()])
        found = detectable_accuracy(items, disagreement, level)
        points = None if found is None else 100 * found
        margin_points = 100 * margin_accuracy(items, disagreement, level) if margins else None
        words.append(f"paired items worth {items:,.0f} of one task, disagreement about {disagreement:.0%} of them")
    if evaluation.perplexity:
        documents = max(2, _tokens(evaluation, perplexity) // tokens_per_document)
        ratio = detectable_perplexity(documents, spread, level)
        margin_ratio = margin_perplexity(documents, spread, level) if margins else None
        words.append(f"{documents:,} documents whose difference scatters by {spread:g} nats a token")
    words.append(f"two-sided at {level:.2g}, power {POWER:.0%}, one run a side (seeds not counted)")
    if margins:
        words.append(f"no difference: two one-sided tests at {level:.2g} where the true difference is zero")
    return Detectable(
        accuracy_points=points,
        perplexity_ratio=ratio,
        margin_points=margin_points,
        margin_ratio=margin_ratio,
        assumptions="; ".join(words),
    )


def detectable_accuracy(n: float, disagreement: float, level: float = ALPHA) -> float | None:
    """Smallest difference of accuracies, as a share, that ``n`` paired items detect (Connor 1987).

    None where even models that never disagree to the worse one's favour would not be told apart.
    """
    z, z_power = stats.norm.isf(level / 2), stats.norm.ppf(POWER)

    def excess(d: float) -> float:
        return sqrt(n) * d - z * sqrt(disagreement) - z_power * sqrt(disagreement - d * d)

    return brentq(excess, 0.0, disagreement) if excess(disagreement) >= 0 else None


def detectable_perplexity(documents: int, spread: float, level: float = ALPHA) -> float:
    """Smallest ratio of perplexities, above 1, that so many paired documents detect."""
    return exp((stats.norm.isf(level / 2) + stats.norm.ppf(POWER)) * spread / sqrt(documents))


def margin_accuracy(n: float, disagreement: float, level: float = ALPHA) -> float:
    """Smallest margin, as a share, within which ``n`` paired items establish that accuracies do not differ."""
    return _margin_errors(level) * sqrt(disagreement / n)


def margin_perplexity(documents: int, spread: float, level: float = ALPHA) -> float:
    """Smallest margin, as a ratio above 1, within which so many paired documents establish equal perplexities."""
    return exp(_margin_errors(level) * spread / sqrt(documents))


def _margin_errors(level: float) -> float:
    """The margin in standard errors; both ends have to be rejected, so each may fail in half of what power leaves."""
    return float(stats.norm.isf(level) + stats.norm.isf((1 - POWER) / 2))


def _effective_items(limits: list[int]) -> float:
    return len(limits) ** 2 / sum(1 / limit for limit in limits)


def _tokens(evaluation: EvaluationParams, name: str | None) -> int:
    texts = evaluation.perplexity
    if name is None and len(texts) > 1:
        raise UserError(f"evaluation.perplexity has {', '.join(texts)}; name the one that the study judges")
    return entry(texts, "evaluation.perplexity", name or next(iter(texts))).max_tokens


def needed(estimate: Estimate, bound: float = 0.0, tails: int = 2, level: float = ALPHA) -> str:
    """Sample that would tell the measured value from ``bound``, in words: ``about 2,400 items``, ``about 9 seeds``.

    For equivalence within a margin, ``bound`` is the nearer end of the margin and ``tails`` 1. ``level`` is below 5 %
    where several comparisons are corrected together.
    """
    t = abs(estimate.t(bound))
    return _sample(estimate, lambda df: float(t / (stats.t.isf(level / tails, df) + stats.t.ppf(POWER, df))) ** 2)


def needed_for_error(estimate: Estimate, standard_error: float) -> str:
    """Sample that would bring the standard error down to ``standard_error``, in words."""
    return _sample(estimate, lambda _: (standard_error / estimate.standard_error) ** 2)


def _sample(estimate: Estimate, allowed: Callable[[float], float]) -> str:
    """Sample that brings the variance down to the share of today's that ``allowed`` gives for degrees of freedom."""
    share, now, at_most = estimate.seed_share, allowed(estimate.df), allowed(inf)
    if at_most < 1 / REACH:
        several = f"{estimate.sample} and seeds" if share > 0 else estimate.sample
        return f"over {REACH} times as many {several}"
    if share <= now / 2:
        return f"about {_round(estimate.n * (1 - share) / (now - share))} {estimate.sample}"
    more_items = 1 - share > at_most / 2
    seeds = next(s for s in count(estimate.seeds + 1) if _left(estimate, s, more_items) <= allowed(_df(estimate, s)))
    items = f"{_round(estimate.n * seeds / estimate.seeds)} {estimate.sample} and " if more_items else ""
    return f"about {items}{seeds} seeds"


def _left(estimate: Estimate, seeds: int, more_items: bool) -> float:
    """Share of today's variance that is left with so many seeds, and in proportion more items or the same."""
    shrink = estimate.seeds / seeds
    return estimate.seed_share * shrink + (1 - estimate.seed_share) * (shrink if more_items else 1)


def _df(estimate: Estimate, seeds: int) -> float:
    return estimate.df * (seeds - 1) / (estimate.seeds - 1)


def _round(number: float) -> str:
    """Two significant digits, thousands separated."""
    return f"{float(f'{number:.2g}'):,.0f}"
