"""What an audit leaves: findings, what was tested, and how often the checks err on tables whose truth is known.

A finding says where (file, row, columns), what is printed there, what would fit, and how sure it is. There are three
grades, because they rest on different things:

    arithmetic   the printed digits exclude each other, however they were rounded
    last digit   they miss each other by no more than one unit of the last printed place: cut off instead of rounded,
                 or rounded twice; worth a look, rarely worth a correction
    statistical  an explanation that fits too well to be luck; ``chance`` says how well luck would have done
"""

from typing import Literal

from bitdistiller.results import Record

Check = Literal["average", "standard error", "item count", "claim", "label", "repeat"]
CHECKS: tuple[Check, ...] = ("average", "standard error", "item count", "claim", "label", "repeat")
Certainty = Literal["arithmetic", "last digit", "statistical"]
GRADES: tuple[Certainty, ...] = ("arithmetic", "statistical", "last digit")

# An explanation is reported when luck finds one as good less often than this, all those that were tried counted.
CHANCE = 1e-3


class Finding(Record):
    """One thing that does not fit; ``row`` counts data rows from 1 and is None for a column or a whole table.

    ``printed`` and ``fits`` map columns to numbers as text; ``fits`` is empty where nothing is known to fit. ``also``
    lists further places that print the same thing.
    """

    check: Check
    title: str
    explanation: str
    file: str
    row: int | None
    row_label: str
    columns: list[str]
    printed: dict[str, str]
    fits: dict[str, str]
    certainty: Certainty
    chance: float | None = None
    also: list[str] = []

    @property
    def where(self) -> str:
        """File, row with its labels, columns."""
        row = [f"row {self.row} ({self.row_label})"] if self.row else []
        return ", ".join([self.file, *row, " ".join(self.columns)])


class Tested(Record):
    """How many numbers of a file a check could judge; ``note`` says what it could not, and why."""

    check: Check
    file: str
    count: int
    note: str = ""


class Rate(Record):
    """A share of generated corpora, with its 95 % Wilson interval; ``corruption`` is empty for clean ones."""

    check: Check | Literal["any"]
    corruption: str
    hits: int
    tables: int
    low: float
    high: float


class Calibration(Record):
    """False alarms on clean tables and detections on corrupted ones (``bitdistiller audit --calibrate``)."""

    seed: int
    any_false_alarm: Rate
    false_alarms: list[Rate]
    detections: list[Rate]


class AuditReport(Record):
    """Findings, surest first, of an audit of ``files`` (name to SHA-256)."""

    files: dict[str, str]
    findings: list[Finding]
    tested: list[Tested]
    calibration: Calibration | None = None

    def table(self) -> list[dict[str, str]]:
        """One row of text a finding: check, where, title, printed, fits, certainty, chance, explanation, also."""
        return [
            {
                "check": finding.check,
                "where": finding.where,
                "title": finding.title,
                "printed": ", ".join(f"{column} {text}" for column, text in finding.printed.items()),
                "fits": ", ".join(f"{column} {text}" for column, text in finding.fits.items()),
                "certainty": finding.certainty,
                "chance": "" if finding.chance is None else f"{finding.chance:.1g}",
                "explanation": finding.explanation,
                "also": "; ".join(finding.also),
            }
            for finding in self.findings
        ]
