"""The same run printed twice, with numbers that differ.

Two rows are the same run if they agree in more measurements than luck allows; no knowledge of defaults is needed. What
else they print must then agree too, each number within its rounding (16.895 and 16.90 do). Two disagreements are told
apart: the same numbers in other columns, and other numbers. Rows that agree while their labels name different models or
widths are reported as well: one of them has been copied.

Luck: two unrelated rows agree in a column as often as its printed unit goes into the spread of its middle half, and at
least once in as many rows as there are; the pairs that were compared are all counted. Rows whose labels may mean the
same run are counted among themselves only.
"""

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import combinations
from math import factorial, prod

import numpy as np

from bitdistiller.analysis.audit.items import normal
from bitdistiller.analysis.audit.record import CHANCE, Finding, Tested
from bitdistiller.analysis.audit.table import EPS, Number, Table

FEWEST = 3  # agreeing numbers that make two rows the same run
MOST_ROWS = 1000
SAME_ROLE = {"student": "model", "base_model": "model", "model_name": "model"}


@dataclass(frozen=True)
class Row:
    """One row of one table: measurements and standard errors by normalised column name, labels likewise."""

    table: Table
    index: int
    measures: dict[str, Number]
    errors: dict[str, Number]
    labels: dict[str, str]
    scores: frozenset[str]

    def place(self) -> str:
        return f"{self.table.name}, row {self.index + 1} ({self.table.label(self.index)})"


def check_repeats(
    tables: Sequence[Table], suspected: Set[tuple[str, int | None]] = frozenset()
) -> tuple[list[Finding], list[Tested]]:
    """Findings on all pairs of rows of all tables.

    Of two rows that differ the one is reported whose (file, row) is ``suspected``, otherwise the later one.
    """
    rows = [row for table in tables if table.scores for row in _rows(table)]
    if len(rows) > MOST_ROWS:
        note = f"{len(rows):,} rows are too many to compare each with each"
        return [], [Tested(check="repeat", file=tables[0].name, count=0, note=note)]
    coincidence = _coincidence(rows)
    pairs = list(combinations(rows, 2))
    alike = {(id(a), id(b)) for a, b in pairs if _may_be_same(a, b)}
    findings, repeated = [], Counter()
    for a, b in pairs:
        compatible = (id(a), id(b)) in alike
        tried = len(alike) if compatible else len(pairs)
        match = _match(a, b, coincidence)
        if match is None or match.chance * tried >= CHANCE:
            continue
        repeated[b.table.name] += 1
        if _place(a) in suspected and _place(b) not in suspected:
            a, b = b, a
        findings += _differences(a, b, match, compatible, match.chance * tried)
    return findings, [Tested(check="repeat", file=t.name, count=repeated[t.name]) for t in tables if repeated[t.name]]


def _place(row: Row) -> tuple[str, int | None]:
    return row.table.name, row.index + 1


def _rows(table: Table) -> Iterator[Row]:
    names = {column: normal(column) for column in table.numbers}
    scores = frozenset(names[score.column] for score in table.scores)
    for i in range(len(table.cells)):
        measures = {names[c]: n for c in table.measures if (n := table.number(c, i))}
        errors = {names[c]: n for c in table.errors.values() if (n := table.number(c, i))}
        labels = {_role(c): normal(str(table.cells[c].iloc[i])) for c in table.keys}
        yield Row(table, i, measures, errors, {role: text for role, text in labels.items() if text}, scores)


def _role(column: str) -> str:
    name = normal(column)
    return SAME_ROLE.get(name, name)


def _may_be_same(a: Row, b: Row) -> bool:
    """No label that both have contradicts."""
    return all(a.labels[role] == b.labels[role] for role in a.labels.keys() & b.labels.keys())


def agree(a: Number, b: Number) -> bool:
    """Whether two printed numbers may be roundings of one."""
    return abs(a.value - b.value) <= a.half + b.half - 2 * EPS if a.half != b.half else a.value == b.value


@dataclass(frozen=True)
class Match:
    """Columns that agree and those that do not; ``permuted`` if the rest agrees in another order."""

    same: list[str]
    different: list[str]
    permuted: bool
    chance: float


def _coincidence(rows: Sequence[Row]) -> dict[str, float]:
    """Probability that unrelated rows agree in a column."""
    values: dict[str, list[Number]] = {}
    for row in rows:
        for column, number in row.measures.items():
            values.setdefault(column, []).append(number)
    return {column: _column_coincidence(numbers) for column, numbers in values.items()}


def _column_coincidence(numbers: list[Number]) -> float:
    quarter, upper = np.quantile([n.value for n in numbers], [0.25, 0.75])
    unit = 2 * max(n.half for n in numbers)
    return min(1.0, max(1 / len(numbers), unit / max(upper - quarter, unit)))


def _match(a: Row, b: Row, coincidence: dict[str, float]) -> Match | None:
    shared = [column for column in a.measures if column in b.measures]
    same = [column for column in shared if agree(a.measures[column], b.measures[column])]
    different = [column for column in shared if column not in same]
    if len(shared) < FEWEST:
        return None
    if len(different) > 1 and set(different) <= a.scores & b.scores and _same_numbers(a, b, different):
        luck = prod(coincidence[column] for column in shared) * factorial(len(different))
        return Match(same, different, True, min(1.0, luck))
    if len(same) < FEWEST:
        return None
    return Match(same, different, False, _tail([coincidence[column] for column in shared], len(same)))


def _same_numbers(a: Row, b: Row, columns: list[str]) -> bool:
    first, second = (sorted(row.measures[c].value for c in columns) for row in (a, b))
    return first == second


def _tail(probabilities: list[float], hits: int) -> float:
    """Probability of at least ``hits`` successes among independent trials of unequal probability."""
    distribution = np.array([1.0])
    for p in probabilities:
        distribution = np.convolve(distribution, [1 - p, p])
    return float(min(1.0, distribution[hits:].sum()))


def _differences(a: Row, b: Row, match: Match, compatible: bool, chance: float) -> Iterator[Finding]:
    if not compatible:
        roles = [role for role in a.labels if role in b.labels and a.labels[role] != b.labels[role]]
        words = (
            f"{len(match.same)} of {len(match.same) + len(match.different)} numbers are those of {a.place()}, but the "
        )
        words += f"rows differ in {', '.join(roles)}."
        # Two widths of one model may tie in a number or two; only all of them is a copy.
        if not match.different:
            yield _finding(a, b, "the same numbers under different labels", words, match.same, "statistical", chance)
        return
    if match.permuted:
        words = f"{a.place()} prints the same {len(match.different)} numbers in other columns, and agrees in "
        words += f"{', '.join(match.same) or 'nothing else'}."
        yield _finding(a, b, "one run printed in two orders of columns", words, match.different, "arithmetic", chance)
    elif match.different:
        words = f"{a.place()} agrees in {', '.join(match.same)} and differs here."
        yield _finding(a, b, "one run printed with different numbers", words, match.different, "statistical", chance)
    if not match.permuted:
        errors = [c for c in a.errors if c in b.errors and not agree(a.errors[c], b.errors[c])]
        if errors:
            words = f"{a.place()} agrees in {', '.join(match.same)} and has other standard errors."
            yield _finding(a, b, "one run printed with different standard errors", words, errors, "statistical", chance)


def _finding(a: Row, b: Row, title: str, words: str, columns: list[str], certainty, chance: float) -> Finding:
    first, second = a.measures | a.errors, b.measures | b.errors
    return Finding(
        check="repeat",
        title=title,
        explanation=words,
        file=b.table.name,
        row=b.index + 1,
        row_label=b.table.label(b.index),
        columns=columns,
        printed={column: second[column].text for column in columns},
        fits={column: first[column].text for column in columns},
        certainty=certainty,
        chance=chance,
    )
