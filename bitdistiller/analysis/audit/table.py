"""A printed table: numbers with the digits they were printed with, and what kind of column each stands in.

A printed number stands for an interval, half a unit of its last place to either side, so digits are read from the text
and never from a float. Where trailing zeros were lost (4.3 for 4.30) the interval is merely wider.

Kinds of columns, by name first and by content second: standard errors (``x_se`` beside ``x``), averages (``avg``,
``mean``), scores (a benchmark's name, a standard error beside it, or numbers with decimals between 0 and 100 under a
name that is not another quantity's), other measures (perplexity), and labels: text, and whole numbers that count
something (bits, epochs). ``74.66 ± 0.89`` in one cell is split into two columns.
"""

import re
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from functools import cached_property
from pathlib import Path

import pandas as pd

from bitdistiller.analysis.audit.items import Benchmark, Items, find_benchmark, normal
from bitdistiller.errors import UserError

MISSING = {"", "-", "--", "–", "—", "n/a", "na", "nan", "none", "oom", "?"}
_SE = re.compile(r"(?:^|_)(?:se|stderr|std_err|std_error|sem|standard_error)$")
_AVERAGE = re.compile(r"(?:^|_)(?:avg|average|mean)(?:_|$)")
_NOT_A_SCORE = re.compile(
    r"(?:^|_)(?:ppl|perplexity|loss|nll|bpb|kl|gamma|hours|seconds|time|gb|mb|size|bits|params|ratio|speed\w*|cost|lr|"
    r"rate|low|high|min|max|std|p|value|effect|difference|level|temperature)(?:_|$)"
)
_PAIR = re.compile(r"^\s*(\S+?)\s*(?:±|\+/-|\+-)\s*(\S+)\s*$")
EPS = 1e-9


@dataclass(frozen=True)
class Number:
    """A number as printed; ``half`` is half a unit of its last printed place."""

    text: str
    value: float
    half: float

    def like(self, value: float) -> str:
        """Another value with as many decimals."""
        return f"{value:.{max(0, -Decimal(self.text).as_tuple().exponent)}f}"


@dataclass(frozen=True)
class Score:
    """A column of accuracies, its benchmark if known, and the column of its standard errors if there is one."""

    column: str
    benchmark: Benchmark | None
    error: str | None


@dataclass(frozen=True)
class Table:
    """A table of R rows; ``cells`` is text, all columns."""

    name: str
    cells: pd.DataFrame
    items: Items
    declared: dict[str, list[str]] = field(default_factory=dict)

    @cached_property
    def numbers(self) -> dict[str, list[Number | None]]:
        """Parsed cells of the columns that hold numbers."""
        parsed = {column: [parse(text) for text in self.cells[column]] for column in self.cells}
        return {column: cells for column, cells in parsed.items() if _is_numeric(self.cells[column], cells)}

    @cached_property
    def keys(self) -> list[str]:
        """Label columns: text, and whole numbers that are no measurement."""
        return [c for c in self.cells if c not in self.numbers or self._counts(c)]

    @cached_property
    def errors(self) -> dict[str, str]:
        """Measured column to the column of its standard errors."""
        by_name = {normal(column): column for column in self.numbers}
        bases = {_SE.sub("", name): column for name, column in by_name.items() if _SE.search(name)}
        return {by_name[base]: column for base, column in bases.items() if base in by_name}

    @cached_property
    def averages(self) -> list[str]:
        """Columns that are averages, by declaration or by name."""
        named = [c for c in self.numbers if _AVERAGE.search(normal(c)) and not _SE.search(normal(c))]
        return list(dict.fromkeys([*self.declared, *named]))

    @cached_property
    def scores(self) -> list[Score]:
        """Columns of accuracies."""
        chosen = [column for column in self.numbers if self._is_score(column)]
        return [Score(column, find_benchmark(column, self.items), self.errors.get(column)) for column in chosen]

    @cached_property
    def measures(self) -> list[str]:
        """Every column of measurements but standard errors."""
        return [c for c in self.numbers if c not in self.keys and not _SE.search(normal(c))]

    @cached_property
    def scale(self) -> float:
        """What a perfect score is printed as: 100, or 1 if no score of the table is above 1."""
        values = [n.value for score in self.scores for n in self.numbers[score.column] if n]
        return 1.0 if values and max(values) <= 1 else 100.0

    def label(self, row: int) -> str:
        """The row's label cells, joined."""
        texts = [str(self.cells[column].iloc[row]).strip() for column in self.keys]
        return ", ".join(text for text in texts if text)

    def number(self, column: str, row: int) -> Number | None:
        return self.numbers[column][row]

    def _counts(self, column: str) -> bool:
        """Whole numbers throughout, and no name of something measured."""
        whole = all(n is None or "." not in n.text for n in self.numbers[column])
        name = normal(column)
        measured = _AVERAGE.search(name) or _SE.search(name) or find_benchmark(column, self.items)
        return whole and not measured and not re.search(r"(?:^|_)(?:ppl|perplexity)(?:_|$)", name)

    def _is_score(self, column: str) -> bool:
        name = normal(column)
        if _SE.search(name) or _AVERAGE.search(name) or column in self.declared or column in self.keys:
            return False
        if find_benchmark(column, self.items) or (column in self.errors and not _NOT_A_SCORE.search(name)):
            return True
        values = [n.value for n in self.numbers[column] if n]
        return not _NOT_A_SCORE.search(name) and all(0 <= value <= 100 for value in values)


def parse(text: str) -> Number | None:
    """A printed number; None for an empty cell or for words. A percent sign and thousands commas are dropped."""
    bare = str(text).strip().replace(",", "").removesuffix("%").strip()
    try:
        value = Decimal(bare)
    except InvalidOperation:
        return None
    if not value.is_finite():
        return None
    return Number(bare, float(value), 0.5 * 10.0 ** value.as_tuple().exponent)


def read_table(path: Path, items: Items, declared: dict[str, list[str]] | None = None) -> Table:
    """A CSV as printed, with every cell as text.

    Raises:
        UserError: the file does not exist, is no CSV, has no rows, or names a column twice.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; name a CSV file or a folder of them")
    try:
        raw = pd.read_csv(path, dtype=str, keep_default_na=False, header=None, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"{path} cannot be read as CSV ({reason}); save the table as UTF-8 CSV") from None
    header = [str(cell).strip() for cell in raw.iloc[0]]
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise UserError(f"{path} has two columns named {repeated[0]!r}; give each column a name of its own")
    cells = raw.iloc[1:].reset_index(drop=True).set_axis(header, axis=1).map(str)
    if cells.empty:
        raise UserError(f"{path} has a header and no rows; there is nothing to audit")
    return Table(path.name, _split_pairs(cells), items, declared or {})


def _split_pairs(cells: pd.DataFrame) -> pd.DataFrame:
    columns = {}
    for name in cells:
        found = [_PAIR.match(text) for text in cells[name]]
        if any(match and parse(match[1]) and parse(match[2]) for match in found):
            columns[name] = [m[1] if m else text for m, text in zip(found, cells[name], strict=True)]
            columns[f"{name}_se"] = [m[2] if m else "" for m in found]
        else:
            columns[name] = list(cells[name])
    return pd.DataFrame(columns)


def _is_numeric(texts: pd.Series, parsed: list[Number | None]) -> bool:
    """All numbers but for missing cells; a stray word is forgiven among numbers with decimals."""
    present = [(text, n) for text, n in zip(texts, parsed, strict=True) if text.strip().lower() not in MISSING]
    numbers = [n for _, n in present if n]
    if not numbers:
        return False
    decimals = any("." in n.text for n in numbers)
    return len(numbers) == len(present) or (decimals and 2 * len(numbers) >= len(present))
