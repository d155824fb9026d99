"""Item counts: the one that is known for a column, or the one that its numbers betray.

A column of a known benchmark has a count from the registry. For any other there are two ways to find one. Each standard
error gives an interval of n, and the n that most rows share is taken if two rows in three share it. And the digits of
the scores themselves are shares of some n: the likeliest n explains them, and the probability that luck, tried at every
n, explains as many says whether to believe it.

Whether a known count is the wrong one is a question of odds. A score is taken to be a share of n items in 19 prints of
20, otherwise anything; before looking, one column in a hundred has another count than its benchmark, any plausible one
alike. The other count is reported when the odds for it are above 1 / ``CHANCE``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np
from scipy import stats

from bitdistiller.analysis.audit.record import CHANCE
from bitdistiller.analysis.audit.share import TELLING
from bitdistiller.analysis.audit.table import EPS, Number, Score, Table

MISPRINTS, OTHER_COUNTS = 0.05, 0.01
SMALLEST, LARGEST = 10, 20_000  # counts that are tried
FEWEST = 3  # numbers from which anything is concluded


@dataclass(frozen=True)
class Count:
    """A column's item count: certain between ``low`` and ``high``; ``exact`` if it is known to one item."""

    low: float
    high: float
    exact: int | None
    found: bool

    def text(self) -> str:
        return f"n = {self.exact:,}" if self.exact else f"n from {self.low:,.0f} to {self.high:,.0f}"


@dataclass(frozen=True)
class Fit:
    """The likeliest count of M distinct scores: ``hits`` of them fit; ``chance`` that luck does as well at some n."""

    n: int
    hits: int
    of: int
    chance: float
    log_odds: float


def counts(table: Table) -> dict[str, Count]:
    """The count of each score column for which one is known or found."""
    found = {score.column: _count(table, score) for score in table.scores}
    return {column: count for column, count in found.items() if count}


def _count(table: Table, score: Score) -> Count | None:
    if score.benchmark is not None:
        n = score.benchmark.items
        return Count(n - 1, n, n, found=False) if score.benchmark.counted else None
    return _from_errors(table, score) if score.error else None


def _from_errors(table: Table, score: Score) -> Count | None:
    """The counts that most standard errors of a column agree on."""
    intervals = []
    for row in range(len(table.cells)):
        number, error = table.number(score.column, row), table.number(score.error, row)
        if number and error and 0 < number.value < table.scale and error.value > error.half:
            variance = number.value * (table.scale - number.value)
            intervals.append((variance / (error.value + error.half) ** 2, variance / (error.value - error.half) ** 2))
    if len(intervals) < FEWEST:
        return None
    low, high, hits = overlap(intervals)
    return Count(low - 1, high + 1, None, found=True) if 3 * hits >= 2 * len(intervals) and low > 1 else None


def overlap(intervals: Sequence[tuple[float, float]]) -> tuple[float, float, int]:
    """The stretch that most closed intervals share, and how many share it."""
    starts = [low for low, _ in intervals]
    depth = [sum(low <= start <= high for low, high in intervals) for start in starts]
    start = starts[int(np.argmax(depth))]
    inside = [(low, high) for low, high in intervals if low <= start <= high]
    return max(low for low, _ in inside), min(high for _, high in inside), len(inside)


def likeliest(numbers: Sequence[Number], scale: float, known: int | None = None) -> Fit | None:
    """The count that explains the distinct scores strictly between 0 and perfect best, ``known`` left aside.

    ``log_odds`` compares it with ``known`` (0 without one). None if fewer than ``FEWEST`` scores can tell.
    """
    finest = min((number.half for number in numbers), default=0.0)
    values = np.array(sorted({n.value for n in numbers if n.half == finest and 0 < n.value < scale}))
    most = min(LARGEST, int(TELLING * scale / (2 * finest))) if finest else 0
    if len(values) < FEWEST or most < SMALLEST:
        return None
    grid = np.arange(SMALLEST, most + 1)
    hits = _hits(values, finest, grid, scale)
    likelihood = _likelihood(hits, len(values), grid, finest, scale)
    if known is not None:
        likelihood[grid == known] = -np.inf
    best = int(np.argmax(likelihood))
    luck = np.minimum(1.0, grid * 2 * finest / scale)
    chance = min(1.0, len(grid) * float(stats.binom.sf(hits[best] - 1, len(values), luck[best])))
    odds = 0.0
    if known is not None:
        at = np.array([known])
        rival = _likelihood(_hits(values, finest, at, scale), len(values), at, finest, scale)[0]
        odds = float(likelihood[best] - rival + np.log(OTHER_COUNTS / (1 - OTHER_COUNTS) / len(grid)))
    return Fit(int(grid[best]), int(hits[best]), len(values), chance, odds)


def believable(fit: Fit | None) -> bool:
    """Whether the odds for another count than the known one are high enough to report it."""
    return fit is not None and fit.log_odds > -log(CHANCE) and fit.chance < CHANCE


def _hits(values: np.ndarray, half: float, grid: np.ndarray, scale: float) -> np.ndarray:
    """How many of ``values`` (M,) are printed shares of each n in ``grid`` (N,): (N,)."""
    low, high = (np.outer(values + side * half, grid) / scale for side in (-1, 1))
    return (np.ceil(low - EPS) <= high + EPS).sum(axis=0)


def _likelihood(hits: np.ndarray, count: int, grid: np.ndarray, half: float, scale: float) -> np.ndarray:
    printable = scale / (2 * half)
    fits = (1 - MISPRINTS) / np.minimum(grid, printable) + MISPRINTS / printable
    return hits * np.log(fits) + (count - hits) * np.log(MISPRINTS / printable)
