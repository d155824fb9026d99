"""Standard errors that do not fit sqrt(p (1 - p) / n), and what would explain them.

Every misfit is put down to the explanation that covers most at once: one constant over a row or a column, numbers in
the wrong columns (``swaps``), the standard errors of another row, one common factor over a table, a column or a row
(another n, or 95 % half-widths, whose factor is 1.96), and only then to a single misprint.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

from bitdistiller.analysis.audit.counts import FEWEST, counts, overlap
from bitdistiller.analysis.audit.record import CHANCE, Finding, Tested
from bitdistiller.analysis.audit.share import error_miss, expected_error
from bitdistiller.analysis.audit.swaps import Cell, row_cells
from bitdistiller.analysis.audit.table import Table

HALF_WIDTH = 1.96


@dataclass(frozen=True)
class Judged:
    """A printed standard error, and by how many last places it misses (0 if it fits)."""

    row: int
    cell: Cell
    miss: float

    @property
    def column(self) -> str:
        return self.cell.score.error


def check_errors(
    table: Table, tables: Sequence[Table], swapped: dict[int, Finding]
) -> tuple[list[Finding], list[Tested]]:
    """Findings on all standard errors of a table; rows in ``swapped`` are explained already."""
    judged = list(_judge(table))
    open_cells = {(one.row, one.column): one for one in judged if one.miss and one.row not in swapped}
    findings: list[Finding] = []
    for explain in (_constant, _copied, _scaled, _single):
        for finding, covered in explain(table, tables, judged, list(open_cells.values())):
            findings.append(finding)
            for one in covered:
                open_cells.pop((one.row, one.column), None)
    return findings, _tested(table, judged)


def _judge(table: Table) -> Iterator[Judged]:
    known = counts(table)
    for row in range(len(table.cells)):
        for cell in row_cells(table, row, known):
            if cell.error is not None:
                miss = error_miss(cell.number, cell.error, (cell.count.low, cell.count.high), table.scale)
                yield Judged(row, cell, miss)


def _tested(table: Table, judged: list[Judged]) -> list[Tested]:
    if not table.errors:
        return []
    there = set(table.errors.values())
    unknown = sorted(there - {one.column for one in judged})
    note = f"no item count for {', '.join(unknown)}" if unknown else ""
    return [Tested(check="standard error", file=table.name, count=len(judged), note=note)]


Explained = Iterator[tuple[Finding, list[Judged]]]


def _lines(judged: Iterable[Judged]) -> list[tuple[str, list[Judged]]]:
    """The judged cells of each row and of each column."""
    groups: dict[tuple[str, int | str], list[Judged]] = {}
    for one in judged:
        groups.setdefault(("row", one.row), []).append(one)
        groups.setdefault(("column", one.column), []).append(one)
    return [(kind, group) for (kind, _), group in groups.items()]


def _constant(table: Table, tables, judged: list[Judged], bad: list[Judged]) -> Explained:
    """One printed value throughout a row or a column whose expected values differ."""
    for kind, line in _lines(judged):
        wrong = [one for one in line if one in bad and one.miss > 1]
        same = {one.cell.error.text for one in line}
        if len(line) < FEWEST or len(same) > 1 or 2 * len(wrong) <= len(line):
            continue
        expected = [_expected(table, one) for one in line]
        words = f"All {len(line)} standard errors of the {kind} are {same.pop()}; the scores and item counts give "
        words += f"{', '.join(expected)}."
        yield _finding(table, "the same standard error throughout", words, line, kind), line


def _copied(table: Table, tables: Sequence[Table], judged: list[Judged], bad: list[Judged]) -> Explained:
    """The standard errors of another row, in this or another table."""
    for row in sorted({one.row for one in bad}):
        line = [one for one in judged if one.row == row]
        wrong = [one for one in bad if one.row == row]
        if len(wrong) < FEWEST:
            continue
        if origin := _origin(table, row, line, tables):
            words = (
                f"{len(wrong)} of {len(line)} standard errors do not fit their scores. All {len(line)} are those of "
            )
            words += f"{origin}."
            yield _finding(table, "standard errors of another row", words, line, "row"), line


def _origin(table: Table, row: int, line: list[Judged], tables: Sequence[Table]) -> str | None:
    """The row that prints all standard errors of ``line`` beside other scores, preferably ones that they fit."""
    places = {}
    for other in tables:
        if not all(column in other.numbers for one in line for column in (one.cell.score.column, one.column)):
            continue
        for i in range(len(other.cells)):
            errors = [other.number(one.column, i) for one in line]
            scores = [other.number(one.cell.score.column, i) for one in line]
            pairs = list(zip(line, scores, errors, strict=True))
            if not all(score and error and error.text == one.cell.error.text for one, score, error in pairs):
                continue
            if all(score.text == one.cell.number.text for one, score, _ in pairs) or len({e.text for e in errors}) == 1:
                continue
            ranges = [(one.cell.count.low, one.cell.count.high) for one in line]
            missed = sum(error_miss(s, e, n, other.scale) > 0 for (_, s, e), n in zip(pairs, ranges, strict=True))
            fitting = "whose scores they fit" if not missed else f"of whose scores {missed} do not fit them either"
            places[f"{other.name}, row {i + 1} ({other.label(i)}), {fitting}"] = missed
    return min(places, key=places.get, default=None)


def _scaled(table: Table, tables, judged: list[Judged], bad: list[Judged]) -> Explained:
    """One factor between printed and expected over the table, a column or a row."""
    lines = [("table", judged), *_lines(judged)]
    left = set(map(id, bad))
    for kind, line in lines:
        wrong = [one for one in line if id(one) in left and one.miss > 1]
        if len(wrong) < FEWEST or 2 * len(wrong) <= len(line):
            continue
        if kind == "table" and len({one.column for one in wrong}) < 2:
            continue
        ratios = [_ratio(table, one) for one in line]
        low, high, hits = overlap(ratios)
        luck = prod(sorted((b - a) / (a + b) * 2 for a, b in ratios)[1:hits]) * len(lines)
        if 5 * hits < 4 * len(line) or luck >= CHANCE:
            continue
        covered = [one for one, (a, b) in zip(line, ratios, strict=True) if a <= high and b >= low]
        left -= set(map(id, covered))
        yield _finding(table, *_factor_words(kind, line, covered, low, high), covered, kind, luck), covered


def _factor_words(kind: str, line: list[Judged], covered: list[Judged], low: float, high: float) -> tuple[str, str]:
    words = f"{len(covered)} of {len(line)} standard errors of the {kind} are {low:.3g} to {high:.3g} times those that "
    words += "follow from score and item count"
    if low <= HALF_WIDTH <= high:
        return "95 % half-widths instead of standard errors", f"{words}, and 1.96 is what a 95 % interval has."
    count = covered[0].cell.count
    if kind == "column":
        words += f"; {count.text()} is known, n from {count.low / high**2:,.0f} to {count.high / low**2:,.0f} would fit"
        return "standard errors of another item count", f"{words}."
    return "standard errors off by one factor", f"{words}."


def _ratio(table: Table, one: Judged) -> tuple[float, float]:
    low, high = expected_error(one.cell.number, (one.cell.count.low, one.cell.count.high), table.scale)
    error = one.cell.error
    tiny = 1e-12
    return max(error.value - error.half, 0) / max(high, tiny), (error.value + error.half) / max(low, tiny)


def _single(table: Table, tables, judged: list[Judged], bad: list[Judged]) -> Explained:
    """What is left, a finding a row: misprints."""
    grades: list[tuple[str, Callable[[Judged], bool]]] = [
        ("standard error does not fit its score", lambda one: one.miss > 1),
        ("standard error off by a last digit", lambda one: one.miss <= 1),
    ]
    for row in sorted({one.row for one in bad}):
        for title, chosen in grades:
            line = [one for one in bad if one.row == row and chosen(one)]
            if line:
                parts = [f"{one.cell.number.text} with {one.cell.count.text()} has {_expected(table, one)}, not "
                         f"{one.cell.error.text}" for one in line]  # fmt: skip
                yield _finding(table, title, f"{'; '.join(parts)}.", line, "row"), line


def _expected(table: Table, one: Judged) -> str:
    low, high = expected_error(one.cell.number, (one.cell.count.low, one.cell.count.high), table.scale)
    return one.cell.error.like((low + high) / 2)


def _finding(
    table: Table, title: str, words: str, line: list[Judged], kind: str, chance: float | None = None
) -> Finding:
    one_row = kind == "row"
    row = line[0].row
    key = (lambda one: one.column) if one_row else (lambda one: f"{one.column} in row {one.row + 1}")
    return Finding(
        check="standard error",
        title=title,
        explanation=words,
        file=table.name,
        row=row + 1 if one_row else None,
        row_label=table.label(row) if one_row else "",
        columns=list(dict.fromkeys(one.column for one in line)),
        printed={key(one): one.cell.error.text for one in line},
        fits={key(one): _expected(table, one) for one in line},
        certainty="last digit" if all(one.miss <= 1 for one in line) else "arithmetic",
        chance=chance,
    )
