"""Scores in the wrong columns: an order of a row's numbers that fits where the printed order does not.

A score fits a column if it is a share of the column's items and its standard error follows from it. Of all orders of a
row, those in which everything fits are sought, moving scores with their standard errors, scores alone, or standard
errors alone. An order is proposed if luck would find one that moves as few numbers with a probability below ``CHANCE``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import permutations
from math import comb, factorial, prod

import numpy as np

from bitdistiller.analysis.audit.counts import Count, counts
from bitdistiller.analysis.audit.record import CHANCE, Finding
from bitdistiller.analysis.audit.share import error_miss, expected_error, luck, share_fits, telling
from bitdistiller.analysis.audit.table import Number, Score, Table

MOST = 7  # columns of which all orders are tried
WHAT = {"pairs": "scores with their standard errors", "scores": "scores", "errors": "standard errors"}


@dataclass(frozen=True)
class Cell:
    """What is printed in one score column of a row, and what the column's count is."""

    score: Score
    count: Count
    number: Number
    error: Number | None


def row_cells(table: Table, row: int, known: dict[str, Count]) -> list[Cell]:
    """The cells of a row that can be judged."""
    cells = []
    for score in table.scores:
        number = table.number(score.column, row)
        if number is not None and score.column in known:
            error = table.number(score.error, row) if score.error else None
            cells.append(Cell(score, known[score.column], number, error))
    return cells


def fits(number: Number, error: Number | None, count: Count, scale: float) -> bool:
    """Whether a score, cut off or rounded, and its standard error can stand in a column with this count."""
    n = count.exact
    if n and telling(number, n, scale) and not (share_fits(number, n, scale) or share_fits(number, n, scale, cut=True)):
        return False
    return error is None or error_miss(number, error, (count.low, count.high), scale) == 0


def find_swaps(table: Table) -> dict[int, Finding]:
    """Row index to the order that is proposed for it."""
    known = counts(table)
    found = {row: _swap(table, row, row_cells(table, row, known)) for row in range(len(table.cells))}
    return {row: finding for row, finding in found.items() if finding}


def _swap(table: Table, row: int, cells: list[Cell]) -> Finding | None:
    wrong = [cell for cell in cells if not fits(cell.number, cell.error, cell.count, table.scale)]
    if not wrong:
        return None
    cells = cells if len(cells) <= MOST else wrong[:MOST]
    proposals = []
    for kind in WHAT if all(cell.error for cell in cells) else ("scores",):
        orders = list(_orders(cells, _fit_matrix(cells, kind, table.scale)))
        if orders:
            fewest = min(_moved(order) for order in orders)
            best = [order for order in orders if _moved(order) == fewest]
            proposals.append((_chance(cells, best[0], table.scale), kind, best))
    # Of equally good ones the first, in the order of WHAT.
    chance, kind, orders = min(proposals, key=lambda proposal: proposal[0], default=(1.0, "", []))
    if chance >= CHANCE:
        return None
    return _finding(table, row, cells, kind, orders, chance)


def _fit_matrix(cells: list[Cell], kind: str, scale: float) -> np.ndarray:
    """(K, K): whether what is printed in column j may stand in column c."""
    moves: dict[str, Callable[[Cell, Cell], bool]] = {
        "pairs": lambda source, target: fits(source.number, source.error, target.count, scale),
        "scores": lambda source, target: fits(source.number, target.error, target.count, scale),
        "errors": lambda source, target: fits(target.number, source.error, target.count, scale),
    }
    return np.array([[moves[kind](source, target) for target in cells] for source in cells])


def _orders(cells: list[Cell], matrix: np.ndarray) -> Iterator[tuple[int, ...]]:
    """Orders in which all fits: column c gets what is printed in column ``order[c]``."""
    for order in permutations(range(len(cells))):
        if all(matrix[source, target] for target, source in enumerate(order)):
            yield order


def _moved(order: tuple[int, ...]) -> int:
    return sum(source != target for target, source in enumerate(order))


def _chance(cells: list[Cell], order: tuple[int, ...], scale: float) -> float:
    """Expected number of orders that move as few numbers and fit by luck."""
    moved = [cell for target, cell in enumerate(cells) if order[target] != target]
    tried = sum(comb(len(cells), count) * _derangements(count) for count in range(2, len(moved) + 1))
    return min(1.0, tried * prod(_luck(cell, cells, scale) for cell in moved))


def _derangements(count: int) -> int:
    return round(sum((-1) ** k * factorial(count) / factorial(k) for k in range(count + 1)))


def _luck(cell: Cell, cells: list[Cell], scale: float) -> float:
    share = 1.0
    if cell.count.exact and telling(cell.number, cell.count.exact, scale):
        share = min(1.0, 2 * luck(cell.number, cell.count.exact, scale))
    # A standard error that fits where it is printed says nothing for another order.
    if cell.error is None or not error_miss(cell.number, cell.error, (cell.count.low, cell.count.high), scale):
        return share
    expected = [expected_error(other.number, (other.count.low, other.count.high), scale) for other in cells]
    spread = max(high for _, high in expected) - min(low for low, _ in expected)
    low, high = expected_error(cell.number, (cell.count.low, cell.count.high), scale)
    window = high - low + 2 * cell.error.half
    return share * min(1.0, window / max(spread, window))


def _finding(table: Table, row: int, cells: list[Cell], kind: str, orders: list, chance: float) -> Finding:
    order = orders[0]
    moved = [target for target in range(len(cells)) if order[target] != target]
    wrong = sum(not fits(cell.number, cell.error, cell.count, table.scale) for cell in cells)
    total = factorial(len(cells))
    words = f"As printed, {wrong} of {len(cells)} scores do not go with their columns' item counts. "
    words += f"{len(orders)} of {total} orders" if len(orders) > 1 else f"One of {total} orders"
    words += f" of the {WHAT[kind]} makes all fit and moves {len(moved)}: "
    words += ", ".join(f"{cells[order[t]].score.column} to {cells[t].score.column}" for t in moved) + "."
    columns = [cells[target].score.column for target in moved]
    return Finding(
        check="standard error" if any(cell.error for cell in cells) else "item count",
        title=f"{WHAT[kind]} stand in the wrong columns",
        explanation=words,
        file=table.name,
        row=row + 1,
        row_label=table.label(row),
        columns=columns,
        printed={cells[t].score.column: _text(cells[t], cells[t], "pairs") for t in moved},
        fits={cells[t].score.column: _text(cells[order[t]], cells[t], kind) for t in moved},
        certainty="arithmetic" if any(cell.error for cell in cells) else "statistical",
        chance=chance,
    )


def _text(source: Cell, target: Cell, kind: str) -> str:
    number = target.number if kind == "errors" else source.number
    error = target.error if kind == "scores" else source.error
    return f"{number.text} ± {error.text}" if error else number.text
