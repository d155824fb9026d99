"""Statistics of paired results: seeds and items are both samples, and every comparison is on the same items.

A score is a mean over items (questions, documents) of a model trained with one seed. Another draw of either would
have moved it, so a difference between two conditions has two sources of error, and an interval that counts only one
is too short. With S seeds and N items crossed, the variance of the grand mean is

    items:  variance over items of the seed-averaged difference, divided by N
    seeds:  variance over seeds of the item-averaged score, divided by S, for each side of the difference
    minus the seed-by-item interaction, which both of these contain once,

with Satterthwaite's degrees of freedom for the t-interval. When seeds dominate this is the textbook t-interval over
seeds; when they agree it is the textbook paired interval over items. One seed cannot show its own spread: then the
interval is the item-level one, and ``Estimate.basis`` says so wherever it is printed.

Accuracy is the unweighted mean over tasks of the mean over items, as the papers average it; flips, the share of items
whose answer is no longer full precision's, likewise. What is counted by tokens (the logarithm of perplexity, KL
divergence to the teacher, top-1 agreement) is a ratio of sums over documents, whose document variance is bootstrapped;
pairing means that all models see the same resampled documents. For a single seed on each side, ``mcnemar`` tests
accuracy exactly, from the items on which exactly one of the two models is right.

That two conditions are *the same* is no result of a test that failed to tell them apart. ``Estimate.equivalence_p``
turns the question round (two one-sided tests, Schuirmann 1987): its null hypotheses are that the true difference is
beyond a margin, on the one side and on the other, and both have to be rejected. p <= 5 % is the same as a 90 % interval
inside the margin.

Where no item tells two conditions apart (both solve none of the problems, say), items have no spread, and t would give
an interval of no width. What is known then is how rare such an item must be: if a share d or more of all items told
them apart, n items would show none with a probability of at most exp(-n d). That is the p against a difference of d,
and d = 3 / n, the rule of three, bounds the 95 % interval on both sides (``Estimate.alike``; over T tasks n is T times
the smallest of them, which is the worst case).

Left out: clustering of questions within a subject.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as _mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from bitdistiller.errors import UserError

ALPHA = 0.05
REPLICATES = 2000
PERPLEXITY_ITEMS = "nll"
Sample = Literal["items", "documents", "data sets"]


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error: ``n`` counts what ``sample`` names, ``seeds`` the trained copies behind it.

    ``seed_share`` is the share of the variance that would stay however many items were scored; 0 with one seed, which
    cannot show it. ``alike`` is above 0 for a difference of two conditions that no item tells apart: the number of
    items of one task that this rests on (see the module's docstring).
    """

    value: float
    standard_error: float
    df: float
    n: int
    seeds: int
    sample: Sample = "items"
    seed_share: float = 0.0
    alike: float = 0.0

    @property
    def low(self) -> float:
        """Lower bound of the 95 % interval."""
        return self.value - self._half_width

    @property
    def high(self) -> float:
        """Upper bound of the 95 % interval."""
        return self.value + self._half_width

    @property
    def _half_width(self) -> float:
        if self.alike:
            return float(-np.log(ALPHA)) / self.alike
        return float(stats.t.ppf(1 - ALPHA / 2, self.df)) * self.standard_error

    @property
    def basis(self) -> str:
        """What the interval covers, as a phrase."""
        return basis(self.sample, self.seeds)

    def t(self, null: float = 0.0) -> float:
        """Distance from ``null`` in standard errors."""
        if self.standard_error == 0:
            return 0.0 if self.value == null else float(np.copysign(np.inf, self.value - null))
        return (self.value - null) / self.standard_error

    def p_value(self, null: float = 0.0) -> float:
        """Two-sided p of the hypothesis that the true value is ``null``."""
        if self.alike:
            return float(np.exp(-abs(null - self.value) * self.alike))
        return float(2 * stats.t.sf(abs(self.t(null)), self.df))

    def equivalence_p(self, margin: float) -> float:
        """p of two one-sided tests that the true value lies within ``margin`` of zero: the larger of the two."""
        if self.alike:
            return max(self.p_value(-margin), self.p_value(margin))
        return float(max(stats.t.sf(self.t(-margin), self.df), stats.t.cdf(self.t(margin), self.df)))

    def minus(self, constant: float) -> "Estimate":
        """The same estimate measured from ``constant``."""
        return replace(self, value=self.value - constant)


def basis(sample: Sample, seeds: int) -> str:
    """What an interval covers, as a phrase."""
    return f"{sample} and {seeds} seeds" if seeds > 1 else f"{sample} only (one seed)"


@dataclass(frozen=True)
class Panel:
    """Results of S runs of one condition on the same N items.

    ``keys`` holds the N pairs (task, item), sorted; ``values`` is (S, N); ``weights`` is (N,): 1 for accuracy, the
    number of predicted tokens for ``nll``.
    """

    keys: pd.MultiIndex
    values: np.ndarray
    weights: np.ndarray

    @property
    def tasks(self) -> np.ndarray:
        """Task of each item, (N,)."""
        return np.asarray(self.keys.get_level_values("task"))

    @property
    def seeds(self) -> int:
        return len(self.values)


def panel(runs: Sequence[pd.DataFrame], metric: str, tasks: Sequence[str] | None = None) -> Panel:
    """Align the items tables of several runs of one condition (columns as ``results.ITEM_COLUMNS``).

    Raises:
        UserError: a table lacks the metric or a task, holds an item twice or a number that is not finite, or the
            runs were scored on different items.
    """
    columns = [_column(items, metric, tasks) for items in runs]
    first = columns[0]
    for other in columns[1:]:
        _require_same(first.index, first["weight"], other.index, other["weight"])
    return Panel(first.index, np.stack([c["value"].to_numpy(float) for c in columns]), first["weight"].to_numpy(float))


def _column(items: pd.DataFrame, metric: str, tasks: Sequence[str] | None) -> pd.DataFrame:
    chosen = items[items["metric"] == metric]
    if tasks is not None:
        chosen = chosen[chosen["task"].isin(tasks)]
        if missing := sorted(set(tasks) - set(chosen["task"])):
            raise UserError(f"no items with metric {metric} for the task {', '.join(missing)}; score the run again")
    if chosen.empty:
        raise UserError(f"no items with metric {metric}; the table has {', '.join(sorted(set(items['metric'])))}")
    column = chosen.set_index(["task", "item"])[["value", "weight"]].sort_index()
    if column.index.has_duplicates:
        task, item = column.index[column.index.duplicated()][0]
        raise UserError(f"item {item} of task {task} appears twice with metric {metric}")
    if not np.isfinite(column.to_numpy(float)).all():
        task, item = column.index[~np.isfinite(column.to_numpy(float)).all(axis=1)][0]
        raise UserError(f"item {item} of task {task} has a {metric} that is not a finite number")
    return column


def _require_same(keys, weights, other_keys, other_weights) -> None:
    if not keys.equals(other_keys):
        task, item = keys.symmetric_difference(other_keys)[0]
        raise UserError(f"paired tests need the same items: item {item} of task {task} was not scored in every run")
    if not np.array_equal(np.asarray(weights), np.asarray(other_weights)):
        raise UserError("paired tests need the same tokens: two runs predict different numbers of tokens per document")


def accuracy(panels: Sequence[Panel], coefficients: Sequence[int | float]) -> Estimate:
    """``sum(c * mean accuracy)`` over conditions, paired by item: ``[1]`` is a mean, ``[1, -1]`` a difference."""
    _require_pairs(panels)
    strata = _strata(panels[0].tasks)
    combined = sum(c * p.values.mean(axis=0) for c, p in zip(coefficients, panels, strict=True))
    variance = _stratified(strata, lambda rows: combined[rows].var(ddof=1) / len(rows), power=2)
    value = _stratified(strata, lambda rows: combined[rows].mean())
    estimate = _estimate(value, variance, strata, [p.values for p in panels], coefficients)
    if list(coefficients) == [1, -1] and estimate.standard_error == 0 and not combined.any():
        smallest = min(len(rows) / panels[0].weights[rows].max() for rows in strata)
        return replace(estimate, alike=float(len(strata) * smallest))
    return estimate


def per_token(panels: Sequence[Panel], coefficients: Sequence[int | float], seed: int = 0) -> Estimate:
    """``sum(c * total value / total weight)`` over conditions, paired by document.

    For ``kl`` that is nats a token, for ``agreement`` the share of positions. Documents are resampled ``REPLICATES``
    times with the generator ``seed``, the same ones for all conditions.
    """
    _require_pairs(panels)
    weights, count = panels[0].weights, len(panels[0].weights)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=REPLICATES)
    combined = sum(c * p.values.mean(axis=0) for c, p in zip(coefficients, panels, strict=True))
    variance = ((draws @ combined) / (draws @ weights)).var(ddof=1)
    contributions = [_linearised(p.values, weights) for p in panels]
    estimate = _estimate(combined.sum() / weights.sum(), variance, [np.arange(count)], contributions, coefficients)
    return replace(estimate, sample="documents")


def log_perplexity(panels: Sequence[Panel], coefficients: Sequence[int | float], seed: int = 0) -> Estimate:
    """``sum(c * log perplexity)`` over conditions: ``[1, -1]`` is the logarithm of a ratio of perplexities.

    Averaging over seeds is done on the logarithm, so a condition's perplexity is the geometric mean of its seeds.
    """
    return per_token(panels, coefficients, seed)


def own_weights(runs: Sequence[Panel]) -> Estimate:
    """Mean over seeds of total value / total weight, where each run has weights of its own (``worst_share``).

    Args:
        runs: a panel of one run for each seed, of the same documents.
    """
    for other in runs[1:]:
        _require_same(runs[0].keys, (), other.keys, ())
    shares = np.concatenate([_linearised(run.values, run.weights) for run in runs])
    return per_token([Panel(runs[0].keys, shares, np.ones(shares.shape[1]))], [1])


def log_ratio(first: Panel, second: Panel) -> Estimate:
    """Logarithm of the ratio of two conditions' totals over the same documents (bits, nats); delta method."""
    levels = [panel.values.mean(axis=0).sum() / panel.weights.sum() for panel in (first, second)]
    spread = per_token([first, second], [1 / levels[0], -1 / levels[1]])
    return replace(spread, value=float(np.log(levels[0] / levels[1])))


def apart(first: Estimate, second: Estimate) -> Estimate:
    """The difference of two estimates from samples without a common item, by Welch's degrees of freedom.

    With several seeds the same trained copies stand behind both, and what they share is not taken into account.
    """
    variances = [estimate.standard_error**2 for estimate in (first, second)]
    total = sum(variances)
    freedom = sum(v**2 / estimate.df for v, estimate in zip(variances, (first, second), strict=True))
    return replace(
        first,
        value=first.value - second.value,
        standard_error=total**0.5,
        df=total**2 / freedom if freedom else first.df,
        n=first.n + second.n,
        seed_share=0.0,
    )


def _linearised(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What each document adds to its run's ratio of sums, (S, N); each row's mean is that ratio."""
    level = values.sum(axis=1, keepdims=True) / weights.sum()
    return level + (values - level * weights) / weights.mean()


def changed(student: Panel, full: Panel) -> Panel:
    """1 where a run of the student chose another answer than ``full``, a single run; panels of the metric ``choice``.

    Raises:
        UserError: ``full`` has several runs, or the items differ.
    """
    _require_pairs([student, full])
    if full.seeds != 1:
        raise UserError(f"flips are counted against one full-precision run; this condition has {full.seeds}")
    return replace(student, values=(student.values != full.values).astype(float))


def flips(student: Panel, full: Panel) -> Estimate:
    """Share of items whose answer is not full precision's, over seeds (of differences: ``accuracy`` of ``changed``)."""
    return accuracy([changed(student, full)], [1])


def retention(student: Panel, full: Panel, chance: float) -> Estimate | None:
    """Share of full precision's accuracy above ``chance`` that the student keeps; ``chance=0`` is plain retention.

    The error is the delta method's on paired items. None when the 95 % interval of full precision reaches down to
    ``chance``: there is nothing to keep, and the ratio means nothing.
    """
    base = accuracy([full], [1]).minus(chance)
    if base.low <= 0:
        return None
    ratio = (accuracy([student], [1]).value - chance) / base.value
    return replace(accuracy([student, full], [1 / base.value, -ratio / base.value]), value=ratio)


def _require_pairs(panels: Sequence[Panel]) -> None:
    for other in panels[1:]:
        _require_same(panels[0].keys, panels[0].weights, other.keys, other.weights)


def _strata(tasks: np.ndarray) -> list[np.ndarray]:
    strata = [np.flatnonzero(tasks == task) for task in np.unique(tasks)]
    if min(len(rows) for rows in strata) < 2:
        raise UserError("a task with fewer than two items has no standard error; raise its limit")
    return strata


def _stratified(strata: list[np.ndarray], statistic, power: int = 1) -> float:
    return float(sum(statistic(rows) for rows in strata)) / len(strata) ** power


def _estimate(value, item_variance, strata, contributions, coefficients) -> Estimate:
    """Put the variance components together (see the module's docstring)."""
    count = sum(len(rows) for rows in strata)
    terms, interaction = [(item_variance, count - len(strata))], 0.0
    for matrix, c in zip(contributions, coefficients, strict=True):
        seeds = len(matrix)
        if seeds < 2:
            continue
        per_seed = np.array([_stratified(strata, lambda rows, run=run: run[rows].mean()) for run in matrix])
        terms.append((c**2 * per_seed.var(ddof=1) / seeds, seeds - 1))
        interaction += c**2 * _stratified(strata, lambda rows, m=matrix: _interaction(m[:, rows]), power=2)
    largest = max(variance for variance, _ in terms)
    total = max(sum(variance for variance, _ in terms) - interaction, largest)
    df = count - len(strata)
    if total > 0:
        df = total**2 / sum(variance**2 / freedom for variance, freedom in terms)
    seeds = max(len(matrix) for matrix in contributions)
    seed_share = float(max(0.0, 1 - item_variance / total)) if total > 0 else 0.0
    return Estimate(float(value), float(np.sqrt(total)), float(df), count, seeds, seed_share=seed_share)


def _interaction(block: np.ndarray) -> float:
    """Variance of a grand mean that the seed-by-item interaction of ``block`` (S, N) accounts for."""
    seeds, count = block.shape
    residual = block - block.mean(axis=0) - block.mean(axis=1, keepdims=True) + block.mean()
    return float((residual**2).sum() / ((seeds - 1) * (count - 1)) / (seeds * count))


@dataclass(frozen=True)
class McNemar:
    """Paired comparison of two runs: items that only the first or only the second has right, and the exact p."""

    only_first: int
    only_second: int
    n: int
    p: float


def mcnemar(first: Panel, second: Panel) -> McNemar:
    """Exact McNemar test of two single runs on the same (task, item) pairs, tasks pooled.

    Raises:
        UserError: a side has several seeds (their items are not independent) or the items differ.
    """
    _require_pairs([first, second])
    if first.seeds != 1 or second.seeds != 1:
        raise UserError("McNemar's test compares two single runs; with several seeds use the interval of accuracy()")
    a, b = first.values[0] > 0.5, second.values[0] > 0.5
    table = [[int((a & b).sum()), int((a & ~b).sum())], [int((~a & b).sum()), int((~a & ~b).sum())]]
    return McNemar(table[0][1], table[1][0], len(a), float(_mcnemar(table, exact=True).pvalue))


def difference_p(first: Panel, second: Panel) -> float:
    """Two-sided p that two conditions have the same accuracy: exact McNemar for single runs, else the t-test.

    McNemar counts items as right or wrong; items that weigh more or less than 1, and means over samples, are neither.
    """
    if first.seeds == second.seeds == 1 and set(np.unique([first.values, second.values])) <= {0.0, 1.0}:
        return mcnemar(first, second).p
    return accuracy([first, second], [1, -1]).p_value()


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % Wilson interval of a proportion."""
    low, high = proportion_confint(successes, n, alpha=ALPHA, method="wilson")
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values, in the order given."""
    return [float(p) for p in multipletests(list(p_values), alpha=ALPHA, method="holm")[1]]
