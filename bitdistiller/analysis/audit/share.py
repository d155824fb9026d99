"""Shares of n items: which digits they can be printed with, and the standard error that goes with them.

A score of k right answers in n is k / n, so few of the 10,001 numbers from 0.00 to 100.00 are possible: with n = 164
one in 61. The chance that an unrelated number is possible is about n times the printed unit, and above ``TELLING`` the
digits say nothing any more (HellaSwag's 10,042 items at two decimals).

The standard error of a share is sqrt(p (1 - p) / n); lm-evaluation-harness divides by n - 1. Both are accepted. No
sampling error is involved: p and n fix it, and only rounding is forgiven.
"""

import math

from bitdistiller.analysis.audit.table import EPS, Number

TELLING = 0.5


def luck(number: Number, n: int, scale: float) -> float:
    """Probability that an unrelated number printed like this one is a share of ``n`` items."""
    return min(1.0, n * 2 * number.half / scale)


def telling(number: Number, n: int, scale: float) -> bool:
    """Whether the digits can speak against ``n`` at all."""
    return 0 < number.value < scale and luck(number, n, scale) <= TELLING


def share_fits(number: Number, n: int, scale: float, cut: bool = False) -> bool:
    """Whether some k of ``n`` is printed like this when rounded (or, with ``cut``, when digits are cut off)."""
    low = number.value if cut else number.value - number.half
    high = number.value + (2 if cut else 1) * number.half
    return math.ceil(low * n / scale - EPS) <= high * n / scale + EPS


def nearest_share(number: Number, n: int, scale: float) -> float:
    """The share of ``n`` items next to the printed number."""
    return round(number.value * n / scale) / n * scale


def expected_error(number: Number, n: tuple[float, float], scale: float) -> tuple[float, float]:
    """Smallest and largest standard error of a score printed like this, for item counts between ``n``'s two."""
    low, high = max(0.0, number.value - number.half), min(scale, number.value + number.half)
    ends = [value * (scale - value) for value in (low, high)]
    top = scale**2 / 4 if low <= scale / 2 <= high else max(ends)
    return math.sqrt(max(0.0, min(ends)) / n[1]), math.sqrt(max(0.0, top) / n[0])


def error_miss(number: Number, error: Number, n: tuple[float, float], scale: float) -> float:
    """By how many units of its last place a standard error lies outside what rounding explains; 0 if it fits."""
    low, high = expected_error(number, n, scale)
    outside = max(low - (error.value + error.half), (error.value - error.half) - high, 0.0)
    return 0.0 if outside <= EPS else outside / (2 * error.half)


def error_fits(number: Number, error: Number, n: int, scale: float) -> bool:
    """Whether a standard error goes with a score of ``n`` items."""
    return error_miss(number, error, (n - 1, n), scale) == 0
