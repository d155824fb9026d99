"""Sentences against tables: a claim file says in which direction a sentence points, and the tables answer.

A claim file is YAML beside the CSVs (``claims.yaml``) with two lists, both optional:

    averages:                       # of which columns a column is the mean, where looking does not tell
      - {file: a.csv, column: avg, of: [piqa, winogrande]}
    claims:
      - id: larger-is-better
        sentence: What the paper says, in your own words.
        source: Paper, section
        test: {kind: comparison, ...}

Three kinds of test. ``where`` and ``but_not`` choose rows by their cells (a value, or a list of them):

    comparison   left and right ({file, columns, where, but_not}) and expect: higher, lower, not higher, not lower or
                 no difference; every left row against every right one, or those that agree in the columns ``match``
    trend        rows, along (a column), order (its values, as the sentence runs through them) and expect: rises or
                 falls; within each group of equal values of ``by``
    repeat       of rows, one has to print the numbers of reference: an ablation contains its default

Numbers that are equal within their rounding contradict no direction. A direction is arithmetic; where standard errors
are printed, ``chance`` says how often two equal models would be as far apart (unpaired, so too seldom surprised).
"No difference" is contradicted by standard errors alone, Holm-corrected over the claim's comparisons.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import hypot
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import yaml
from pydantic import Field, ValidationError
from scipy import stats

from bitdistiller.analysis.audit.record import Finding, Tested
from bitdistiller.analysis.audit.repeats import agree
from bitdistiller.analysis.audit.table import Number, Table
from bitdistiller.analysis.stats import ALPHA, holm
from bitdistiller.errors import UserError
from bitdistiller.results import Record

CLAIM_FILE = "claims.yaml"
MOST_SHOWN = 3
Value = str | int | float
Selection = dict[str, Value | list[Value]]
Direction = Literal["higher", "lower", "not higher", "not lower", "no difference"]


class Cells(Record):
    """Columns of chosen rows of one table."""

    file: str
    columns: list[str] = Field(min_length=1)
    where: Selection = {}
    but_not: Selection = {}


class Comparison(Record):
    kind: Literal["comparison"]
    left: Cells
    right: Cells
    expect: Direction
    match: list[str] = []


class Trend(Record):
    kind: Literal["trend"]
    rows: Cells
    along: str
    order: list[Value] = Field(min_length=2)
    expect: Literal["rises", "falls"]
    by: list[str] = []


class Repeat(Record):
    kind: Literal["repeat"]
    rows: Cells
    reference: Cells


class PrintedClaim(Record):
    """A sentence, where it stands, and what the tables would have to print."""

    id: str
    sentence: str
    source: str
    test: Annotated[Comparison | Trend | Repeat, Field(discriminator="kind")]


class Average(Record):
    file: str
    column: str
    of: list[str] = Field(min_length=2)


class ClaimFile(Record):
    averages: list[Average] = []
    claims: list[PrintedClaim] = []

    def declared(self, file: str) -> dict[str, list[str]]:
        """Average columns of a file and what they are of."""
        return {average.column: average.of for average in self.averages if average.file == file}


def load_claims(path: Path) -> ClaimFile:
    """Read and validate a claim file.

    Raises:
        UserError: no such file, no YAML, or an entry that is not of the form above.
    """
    if not path.is_file():
        raise UserError(f"the claim file {path} does not exist")
    try:
        return ClaimFile.model_validate(yaml.safe_load(path.read_text()) or {})
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UserError(f"the claim file {path} is not YAML") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole file"
        raise UserError(f"the claim file {path} is malformed at {place}: {first['msg']}") from None


@dataclass(frozen=True)
class Compared:
    """A printed number held against another; ``z`` is their distance in standard errors where those are printed."""

    left: "Printed"
    right: "Printed"

    @property
    def difference(self) -> float:
        return self.left.number.value - self.right.number.value

    @property
    def p(self) -> float | None:
        if self.left.error is None or self.right.error is None:
            return None
        return float(2 * stats.norm.sf(abs(self.difference) / max(hypot(self.left.error, self.right.error), 1e-12)))

    def against(self, expect: Direction) -> bool:
        """Whether the direction is contradicted beyond rounding."""
        wrong_side = {"higher": self.difference <= 0, "lower": self.difference >= 0,
                      "not higher": self.difference > 0, "not lower": self.difference < 0}  # fmt: skip
        return wrong_side[expect] and not agree(self.left.number, self.right.number)


@dataclass(frozen=True)
class Printed:
    table: Table
    row: int
    column: str
    number: Number
    error: float | None

    def text(self) -> str:
        return f"{self.column} {self.number.text} ({self.table.label(self.row)})"


def check_claims(file: ClaimFile, tables: Sequence[Table]) -> tuple[list[Finding], list[Tested]]:
    """Findings on claims whose files are all among ``tables``; where only some are, ``Tested`` says so.

    Raises:
        UserError: a claim names a column or row that its table does not have.
    """
    by_name = {table.name: table for table in tables}
    findings: list[Finding] = []
    tested: list[Tested] = []
    for claim in file.claims:
        files = list(dict.fromkeys(cells.file for cells in _cells(claim)))
        absent = [file for file in files if file not in by_name]
        if absent == files:
            continue
        if absent:
            note = f"{claim.id}: {', '.join(absent)} is not audited"
            tested.append(Tested(check="claim", file=files[0], count=0, note=note))
            continue
        found, count = _TESTS[claim.test.kind](claim, claim.test, by_name)
        findings += found
        tested.append(Tested(check="claim", file=files[0], count=count, note=claim.id))
    return findings, tested


def _cells(claim: PrintedClaim) -> list[Cells]:
    test = claim.test
    if isinstance(test, Trend):
        return [test.rows]
    return [test.left, test.right] if isinstance(test, Comparison) else [test.rows, test.reference]


def _compare(claim: PrintedClaim, test: Comparison, tables: dict[str, Table]) -> tuple[list[Finding], int]:
    left, right = (_select(claim, cells, tables) for cells in (test.left, test.right))
    if len(test.left.columns) != len(test.right.columns):
        raise UserError(f"claim {claim.id}: left and right need as many columns as each other")
    pairs = [
        Compared(a, b)
        for first, second in zip(test.left.columns, test.right.columns, strict=True)
        for a in left[first]
        for b in right[second]
        if (a.table, a.row) != (b.table, b.row) and _matches(claim, a, b, test.match)
    ] if test.left != test.right else _among(left)  # fmt: skip
    if test.expect == "no difference":
        return _no_difference(claim, pairs)
    wrong = [pair for pair in pairs if pair.against(test.expect)]
    return _direction(claim, test.expect, wrong, len(pairs)), len(pairs)


def _among(cells: dict[str, list[Printed]]) -> list[Compared]:
    return [Compared(a, b) for line in cells.values() for i, a in enumerate(line) for b in line[i + 1 :]]


def _matches(claim: PrintedClaim, a: Printed, b: Printed, columns: list[str]) -> bool:
    return all(_cell(claim, a.table, column, a.row) == _cell(claim, b.table, column, b.row) for column in columns)


def _no_difference(claim: PrintedClaim, pairs: list[Compared]) -> tuple[list[Finding], int]:
    judged = [pair for pair in pairs if pair.p is not None]
    adjusted = holm([pair.p for pair in judged]) if judged else []
    wrong = sorted((p, i) for i, p in enumerate(adjusted) if p <= ALPHA)
    if not wrong:
        return [], len(judged)
    parts = []
    for p, i in wrong[:MOST_SHOWN]:
        pair = judged[i]
        parts.append(f"{pair.left.text()} and {pair.right.text()} differ by {abs(pair.difference):.3g} "
                     f"(corrected p = {p:.1g})")  # fmt: skip
    pair = judged[wrong[0][1]]
    words = f"{len(wrong)} of {len(judged)} comparisons differ by their own standard errors: {'; '.join(parts)}."
    title = "the text sees no difference where the table's standard errors show one"
    return [_finding(claim, title, words, pair.left, pair.right, "statistical", wrong[0][0])], len(judged)


def _trend(claim: PrintedClaim, test: Trend, tables: dict[str, Table]) -> tuple[list[Finding], int]:
    chosen, expect = _select(claim, test.rows, tables), "higher" if test.expect == "rises" else "lower"
    order = [_plain(value) for value in test.order]
    steps = []
    for line in chosen.values():
        groups: dict[tuple, list[Printed]] = {}
        for one in line:
            groups.setdefault(tuple(_cell(claim, one.table, column, one.row) for column in test.by), []).append(one)
        for group in groups.values():
            at = {_cell(claim, one.table, test.along, one.row): one for one in group}
            there = [at[value] for value in order if value in at]
            steps += [Compared(after, before) for before, after in pairwise(there)]
    if not steps:
        raise UserError(f"claim {claim.id}: no two chosen rows have {test.along} among {order}")
    wrong = [step for step in steps if step.against(expect)]
    return _direction(claim, expect, wrong, len(steps)), len(steps)


def _direction(claim: PrintedClaim, expect: str, wrong: list[Compared], count: int) -> list[Finding]:
    if not wrong:
        return []
    parts = [f"{pair.left.text()} against {pair.right.text()}" for pair in wrong[:MOST_SHOWN]]
    words = f"The first number of each comparison should be {expect}; in {len(wrong)} of {count} it is not: "
    words += f"{'; '.join(parts)}{' and others' if len(wrong) > MOST_SHOWN else ''}."
    first = wrong[0]
    if first.p is not None:
        words += f" Models that are equal would be as far apart with probability {first.p:.2g}."
    title = "the text says one direction, the table another"
    return [_finding(claim, title, words, first.left, first.right, "arithmetic", first.p)]


def _repeat(claim: PrintedClaim, test: Repeat, tables: dict[str, Table]) -> tuple[list[Finding], int]:
    rows, reference = (_select(claim, cells, tables) for cells in (test.rows, test.reference))
    wanted = [reference[column][0] for column in test.reference.columns]
    lines = [[reference_row[i] for reference_row in rows.values()] for i in range(len(next(iter(rows.values()))))]
    if any(all(agree(a.number, b.number) for a, b in zip(line, wanted, strict=True)) for line in lines):
        return [], len(lines)
    first = wanted[0]
    words = f"None of {len(lines)} rows prints the numbers of {first.table.name}, row {first.row + 1} "
    words += f"({first.table.label(first.row)}): {', '.join(f'{w.column} {w.number.text}' for w in wanted)}."
    title = "the default is missing from the table that varies it"
    finding = _finding(claim, title, words, lines[0][0], first, "arithmetic", None)
    printed = {f"{one.column} in row {one.row + 1}": one.number.text for line in lines for one in line}
    fits = {one.column: one.number.text for one in wanted}
    return [finding.model_copy(update={"row": None, "row_label": "", "printed": printed, "fits": fits})], len(lines)


_TESTS = {"comparison": _compare, "trend": _trend, "repeat": _repeat}


def _select(claim: PrintedClaim, cells: Cells, tables: dict[str, Table]) -> dict[str, list[Printed]]:
    """Chosen numbers of each column; rows where it is missing are left out."""
    table = tables[cells.file]
    rows = [row for row in range(len(table.cells)) if _chosen(claim, table, cells, row)]
    found = {column: list(_printed(claim, table, column, rows)) for column in cells.columns}
    if empty := [column for column, numbers in found.items() if not numbers]:
        raise UserError(f"claim {claim.id}: no row of {cells.file} that is chosen has a number under {empty[0]}")
    return found


def _printed(claim: PrintedClaim, table: Table, column: str, rows: list[int]) -> Iterator[Printed]:
    if column not in table.numbers:
        raise UserError(f"claim {claim.id}: {table.name} has no numbers under {column!r}")
    for row in rows:
        if number := table.number(column, row):
            error = table.number(table.errors[column], row) if column in table.errors else None
            yield Printed(table, row, column, number, error.value if error else None)


def _chosen(claim: PrintedClaim, table: Table, cells: Cells, row: int) -> bool:
    def holds(column: str, wanted: Value | list[Value]) -> bool:
        values = wanted if isinstance(wanted, list) else [wanted]
        return _cell(claim, table, column, row) in map(_plain, values)

    return all(holds(*item) for item in cells.where.items()) and not any(holds(*item) for item in cells.but_not.items())


def _cell(claim: PrintedClaim, table: Table, column: str, row: int) -> str:
    if column not in table.cells:
        raise UserError(f"claim {claim.id}: {table.name} has no column {column!r}; it has {', '.join(table.cells)}")
    return _plain(table.cells[column].iloc[row])


def _plain(value: Value) -> str:
    number = pd.to_numeric(value, errors="coerce")
    return str(value).strip() if pd.isna(number) else f"{float(number):g}"


def _finding(claim: PrintedClaim, title: str, words: str, left: Printed, right: Printed, certainty, chance) -> Finding:
    key = f"{right.column} in {right.table.name} row {right.row + 1}"
    return Finding(
        check="claim",
        title=title,
        explanation=f"“{claim.sentence}” ({claim.source}). {words}",
        file=left.table.name,
        row=left.row + 1,
        row_label=left.table.label(left.row),
        columns=[left.column],
        printed={left.column: left.number.text, key: right.number.text},
        fits={},
        certainty=certainty,
        chance=chance,
    )
