"""Results -> tables, figures and the report's pages."""

from bitdistiller.report.scales import all_scales, own_scale, publish
from bitdistiller.report.site import build_report, verdict_lines

__all__ = ["all_scales", "build_report", "own_scale", "publish", "verdict_lines"]
