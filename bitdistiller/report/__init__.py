"""Results -> tables, figures and the report page."""

from bitdistiller.report.page import build_report, read_studies, verdict_lines

__all__ = ["build_report", "read_studies", "verdict_lines"]
