"""Averages that are not the mean of their columns.

Which columns an average is of is declared or found: of all sets of score columns, the one whose mean most rows print.
It is believed when luck would find one as good with a probability below ``CHANCE``, all sets counted, and when more
than half of the rows agree. The mean of printed numbers may miss the printed mean of unrounded ones by half a unit of
the average plus the mean of the columns' half units, and no more.
"""

from collections.abc import Iterator
from itertools import combinations
from statistics import fmean

from scipy import stats

from bitdistiller.analysis.audit.record import CHANCE, Finding, Tested
from bitdistiller.analysis.audit.share import error_fits, share_fits
from bitdistiller.analysis.audit.table import EPS, Number, Score, Table

MOST_COLUMNS = 12  # of which all sets are tried; with more, only neighbouring columns


def check_averages(table: Table) -> tuple[list[Finding], list[Tested]]:
    """Findings on every average of a table."""
    findings, tested = [], []
    for column in table.averages:
        if column not in table.numbers:
            continue
        members = table.declared.get(column) or _members(table, column)
        if members is None:
            tested.append(Tested(check="average", file=table.name, count=0, note=f"{column}: of which columns?"))
            continue
        rows = list(_complete(table, column, members))
        for row, average, numbers in rows:
            if finding := _judge(table, column, members, row, average, numbers):
                findings.append(finding)
        note = f"{column} = mean of {', '.join(members)}"
        tested.append(Tested(check="average", file=table.name, count=len(rows), note=note))
    return findings, tested


def _complete(table: Table, column: str, members: list[str]) -> Iterator[tuple[int, Number, list[Number]]]:
    """Rows in which neither the average nor a member is missing."""
    for row in range(len(table.cells)):
        numbers = [table.number(member, row) for member in members]
        average = table.number(column, row)
        if average is not None and all(n is not None for n in numbers):
            yield row, average, numbers


def _miss(average: Number, numbers: list[Number]) -> tuple[float, float]:
    """Mean of the numbers, and by how much the printed average lies outside what rounding explains."""
    mean = fmean(n.value for n in numbers)
    slack = average.half + fmean(n.half for n in numbers)
    return mean, abs(mean - average.value) - slack


def _members(table: Table, column: str) -> list[str] | None:
    """The set of score columns that ``column`` averages, or None if none stands out."""
    candidates = [score.column for score in table.scores]
    sets = list(_sets(candidates))
    best, best_rank, best_chance = None, (0, 0), 1.0
    for members in sets:
        rows = list(_complete(table, column, list(members)))
        if not rows:
            continue
        hits = sum(_miss(average, numbers)[1] <= EPS for _, average, numbers in rows)
        if 2 * hits > len(rows) and (hits, len(members)) > best_rank:
            best, best_rank = list(members), (hits, len(members))
            best_chance = len(sets) * stats.binom.sf(hits - 1, len(rows), fmean(_luck(*row[1:]) for row in rows))
    return best if best_chance < CHANCE else None


def _luck(average: Number, numbers: list[Number]) -> float:
    """Probability that the mean of unrelated columns is the printed average: window over spread."""
    values = [n.value for n in numbers]
    window = 2 * (average.half + fmean(n.half for n in numbers))
    return min(1.0, window / max(max(values) - min(values), window))


def _sets(candidates: list[str]) -> Iterator[tuple[str, ...]]:
    count = len(candidates)
    if count <= MOST_COLUMNS:
        for size in range(2, count + 1):
            yield from combinations(candidates, size)
    else:
        yield from (tuple(candidates[i:j]) for i in range(count) for j in range(i + 2, count + 1))


def _judge(table: Table, column: str, members: list[str], row: int, average: Number, numbers: list[Number]):
    mean, excess = _miss(average, numbers)
    if excess <= EPS:
        return None
    small = excess <= 2 * average.half + EPS
    right = average.like(mean)
    words = f"The {len(members)} columns average {right}; {average.text} is printed, {abs(average.value - mean):.2g} "
    words += "higher." if average.value > mean else "lower."
    if not small:
        words += _single_cell(table, members, row, average, numbers)
    return Finding(
        check="average",
        title="average off by a last digit" if small else "average is not the mean of its columns",
        explanation=words,
        file=table.name,
        row=row + 1,
        row_label=table.label(row),
        columns=[column],
        printed={column: average.text},
        fits={column: right},
        certainty="last digit" if small else "arithmetic",
    )


def _single_cell(table: Table, members: list[str], row: int, average: Number, numbers: list[Number]) -> str:
    """Which one score, changed, would make the average right and still fit its own count and standard error."""
    scores = {score.column: score for score in table.scores}
    options = []
    for member, number in zip(members, numbers, strict=True):
        needed = average.value * len(members) - sum(n.value for n in numbers) + number.value
        if 0 <= needed <= table.scale and _possible(table, scores.get(member), row, number, needed, len(members)):
            options.append(f"{member} {number.like(needed)}")
    if options:
        return f" If the average is right, one score may be wrong: {' or '.join(options)} would fit."
    return " No single other score that its item count and standard error allow would make it right."


def _possible(table: Table, score: Score | None, row: int, number: Number, needed: float, count: int) -> bool:
    if score is None or score.benchmark is None or not score.benchmark.counted:
        return True
    other = Number(number.like(needed), needed, number.half * (count + 1))
    if not share_fits(other, score.benchmark.items, table.scale):
        return False
    error = table.number(score.error, row) if score.error else None
    return error is None or error_fits(other, error, score.benchmark.items, table.scale)
