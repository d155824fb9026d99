"""Accuracies that are no multiple of 1/n.

All scores of a benchmark in a file are judged together first. If more than one in ten fits its known count neither
rounded nor cut off, another count is sought (``counts.likeliest``): evaluation in batches that drops the last one, a
subset, several samples. Otherwise the scores that do not fit are listed a row, and those that only fit when digits are
cut off instead of rounded are one finding a file.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from bitdistiller.analysis.audit.counts import Fit, believable, likeliest
from bitdistiller.analysis.audit.record import CHANCE, Finding, Tested
from bitdistiller.analysis.audit.share import luck, nearest_share, share_fits, telling
from bitdistiller.analysis.audit.table import Number, Table

NEARLY_ALL = 0.9
UNKNOWN_NEEDS = 6  # scores from which the count of an unknown benchmark is inferred
MULTIPLES = 4


@dataclass(frozen=True)
class Place:
    """A printed score, its place, and the count that it is judged by."""

    row: int
    column: str
    number: Number
    n: int


def check_multiples(table: Table, swapped: dict[int, Finding]) -> tuple[list[Finding], list[Tested]]:
    """Findings on the digits of every score; rows in ``swapped`` are explained already."""
    findings: list[Finding] = []
    tested, lone = 0, []
    for places in _pools(table, swapped).values():
        judged = [place for place in places if telling(place.number, place.n, table.scale)]
        tested += len(judged)
        finding, left = _pooled(table, judged)
        findings += [finding] if finding else []
        lone += left
    unknown = list(_unknown(table))
    findings += [finding for finding, _ in unknown]
    findings += [*_rows(table, lone), *_cut_off(table, lone)]
    tested += sum(count for _, count in unknown)
    blunt = sorted({s.column for s in table.scores if s.benchmark is None or not s.benchmark.counted})
    note = f"no item count for {', '.join(blunt)}" if blunt else ""
    return findings, [Tested(check="item count", file=table.name, count=tested, note=note)] if table.scores else []


def _pools(table: Table, swapped: dict[int, Finding]) -> dict[str, list[Place]]:
    pools: dict[str, list[Place]] = {}
    for score in table.scores:
        if score.benchmark is None or not score.benchmark.counted:
            continue
        for row, number in enumerate(table.numbers[score.column]):
            if number is not None and row not in swapped:
                place = Place(row, score.column, number, score.benchmark.items)
                pools.setdefault(score.benchmark.name, []).append(place)
    return pools


def _fits(place: Place, scale: float, n: int | None = None) -> bool:
    return share_fits(place.number, n or place.n, scale)


def _fits_cut(place: Place, scale: float, n: int | None = None) -> bool:
    return _fits(place, scale, n) or share_fits(place.number, n or place.n, scale, cut=True)


def _distinct(places: list[Place]) -> list[Place]:
    return list({place.number.value: place for place in places}.values())


def _pooled(table: Table, places: list[Place]) -> tuple[Finding | None, list[Place]]:
    """The finding that another count fits better, if it does, and the places that it leaves to be judged one by one."""
    some = _distinct(places)
    loose = sum(_fits_cut(place, table.scale) for place in some)
    if not some or loose >= NEARLY_ALL * len(some):
        return None, places
    fit = likeliest([place.number for place in places], table.scale, places[0].n)
    if believable(fit):
        return _other_count(table, places, fit), []
    if len(some) >= UNKNOWN_NEEDS and loose < len(some) / 2:
        return _no_count(table, places, loose, len(some)), []
    return None, places


def _other_count(table: Table, places: list[Place], fit: Fit) -> Finding:
    n, some = places[0].n, _distinct(places)
    known = sum(_fits(place, table.scale) for place in some)
    expected = sum(luck(place.number, n, table.scale) for place in some)
    neither = sorted(p.number.value for p in some if not _fits_cut(p, table.scale, fit.n))
    words = f"{fit.hits} of {fit.of} distinct scores are multiples of 1/{fit.n:,}, and {known} of 1/{n:,}, of which "
    words += f"unrelated numbers would make {expected:.0f}; that some count fits as many by luck has probability "
    words += f"{fit.chance:.1g}."
    if neither:
        words += f" Not even cut off do {', '.join(some[0].number.like(v) for v in neither)} fit n = {fit.n:,}."
    return _finding(table, places, f"scores fit n = {fit.n:,}, not {n:,}", words, "statistical", fit.chance, fit.n)


def _no_count(table: Table, places: list[Place], loose: int, count: int) -> Finding:
    words = f"{count - loose} of {count} distinct scores are no multiples of 1/{places[0].n:,}, not even cut off, and "
    words += "no other count explains them: they may be means over several runs or samples, or weighted."
    return _finding(table, places, f"scores do not fit n = {places[0].n:,}", words, "arithmetic", None, None)


def _unknown(table: Table) -> Iterator[tuple[Finding, int]]:
    """Columns without a known count: most scores fit one n, some do not."""
    for score in table.scores:
        if score.benchmark is not None:
            continue
        numbers = [(row, number) for row, number in enumerate(table.numbers[score.column]) if number]
        fit = likeliest([number for _, number in numbers], table.scale)
        if fit is None or fit.of < UNKNOWN_NEEDS or fit.chance >= CHANCE or fit.hits < 0.8 * fit.of:
            continue
        places = [Place(row, score.column, number, fit.n) for row, number in numbers]
        odd = [p for p in places if telling(p.number, p.n, table.scale) and not _fits_cut(p, table.scale)]
        # The likeliest n may be a divisor of the true one, of which all scores are multiples.
        if odd and not any(all(_fits(p, table.scale, k * fit.n) for p in places) for k in range(2, MULTIPLES + 1)):
            words = f"{fit.hits} of {fit.of} distinct scores of the column are multiples of 1/{fit.n:,}; "
            words += f"{', '.join(p.number.text for p in odd)} {'is' if len(odd) == 1 else 'are'} not."
            title = f"scores do not fit the column's n = {fit.n:,}"
            yield _finding(table, odd, title, words, "statistical", fit.chance, fit.n), len(numbers)


def _rows(table: Table, places: list[Place]) -> Iterator[Finding]:
    """Scores that fit neither rounded nor cut off, a finding a row and grade."""
    for row in sorted({place.row for place in places}):
        odd = [p for p in places if p.row == row and not _fits_cut(p, table.scale)]
        near = [p for p in odd if _is_near(p, table.scale)]
        for small, line in ((False, [p for p in odd if p not in near]), (True, near)):
            if line:
                parts = [
                    f"{p.number.text} is no multiple of 1/{p.n:,}: the nearest is {_nearest(table, p)}" for p in line
                ]
                title = "score off by a last digit" if small else "score is no multiple of 1/n"
                grade = "last digit" if small else "arithmetic"
                yield _finding(table, line, title, f"{'; '.join(parts)}.", grade, None, line[0].n, one_row=True)


def _is_near(place: Place, scale: float) -> bool:
    """Within a unit of the last place, or right if a zero at the end was filled in (4.30 for 4.3)."""
    number = place.number
    if "." in number.text and number.text.endswith("0"):
        return share_fits(Number(number.text[:-1], number.value, 10 * number.half), place.n, scale)
    return abs(number.value - nearest_share(number, place.n, scale)) <= 3 * number.half


def _cut_off(table: Table, places: list[Place]) -> Iterator[Finding]:
    cut = [p for p in places if not _fits(p, table.scale) and _fits_cut(p, table.scale)]
    if cut:
        rounded = sum(_fits(p, table.scale) for p in places)
        words = f"{len(cut)} of {len(places)} scores are multiples of 1/n only if digits were cut off; {rounded} are "
        words += "when rounded."
        yield _finding(table, cut, "scores cut off instead of rounded", words, "last digit", None, None)


def _nearest(table: Table, place: Place) -> str:
    return place.number.like(nearest_share(place.number, place.n, table.scale))


def _finding(
    table, places: list[Place], title, words, certainty, chance, n: int | None, one_row: bool = False
) -> Finding:
    columns = list(dict.fromkeys(place.column for place in places))
    shown = places if one_row or n is None or len(places) < UNKNOWN_NEEDS else []
    key = (lambda p: p.column) if one_row else (lambda p: f"{p.column} in row {p.row + 1}")
    return Finding(
        check="item count",
        title=title,
        explanation=words,
        file=table.name,
        row=places[0].row + 1 if one_row else None,
        row_label=table.label(places[0].row) if one_row else "",
        columns=columns,
        printed={key(p): p.number.text for p in shown},
        fits={key(p): _nearest(table, p) for p in shown} if shown else {"n": f"{n:,}"},
        certainty=certainty,
        chance=chance,
    )
