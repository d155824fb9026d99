"""An audit as text for a terminal."""

import textwrap
from collections.abc import Iterator

from bitdistiller.analysis.audit.record import AuditReport, Calibration, Finding, Rate, Tested

WIDTH = 110


def lines(report: AuditReport) -> Iterator[str]:
    """Findings, surest first, then what was tested and how often the checks err."""
    for number, finding in enumerate(report.findings, start=1):
        yield from _finding(number, finding)
        yield ""
    checks = dict.fromkeys(one.check for one in report.tested)
    counts = {check: sum(one.count for one in report.tested if one.check == check) for check in checks}
    tested = ", ".join(f"{check} {count}" for check, count in counts.items())
    yield f"{len(report.findings)} findings. Tested in {len(report.files)} files: {tested or 'nothing'}."
    yield from (f"not tested: {one.file}: {one.check}: {one.note}" for one in report.tested if _untested(one))
    if report.calibration:
        yield alarm_sentence(report.calibration)


def alarm_sentence(calibration: Calibration) -> str:
    """The false-alarm rate of all checks together, with its interval."""
    rate = calibration.any_false_alarm
    return (
        f"False alarms: {rate.hits} of {rate.tables:,} clean generated corpora had a finding "
        f"({_percent(rate)}; `bitdistiller audit --calibrate` measures it again)."
    )


def calibration_lines(calibration: Calibration) -> Iterator[str]:
    """Every rate, with its interval."""
    yield alarm_sentence(calibration)
    for rate in calibration.false_alarms:
        yield f"  {rate.check:15} {_percent(rate)}"
    yield "Detections:"
    for rate in calibration.detections:
        yield f"  {rate.check:15} {_percent(rate):32} {rate.corruption}"


def _percent(rate: Rate) -> str:
    return f"{rate.hits / rate.tables:.1%}, 95 % interval {rate.low:.1%} to {rate.high:.1%}"


def _untested(one: Tested) -> bool:
    return bool(one.note) and (one.count == 0 or one.note.startswith("no item count"))


def _finding(number: int, finding: Finding) -> Iterator[str]:
    yield f"{number}. {finding.title}"
    yield f"   {finding.where}"
    printed, fits = (", ".join(f"{k} {v}" for k, v in side.items()) for side in (finding.printed, finding.fits))
    sure = finding.certainty + ("" if finding.chance is None else f", chance of luck {finding.chance:.1g}")
    for name, text in (("printed", printed), ("fits", fits), ("sure", sure), ("also", "; ".join(finding.also))):
        if text:
            yield from textwrap.wrap(f"{name + ':':9}{text}", WIDTH, initial_indent="   ", subsequent_indent=" " * 12)
    yield from textwrap.wrap(finding.explanation, WIDTH, initial_indent="   ", subsequent_indent="   ")
