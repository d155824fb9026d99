"""What training left behind: loss and validation perplexity along the steps."""

from collections.abc import Sequence

import matplotlib
import pandas as pd
from matplotlib.ticker import MaxNLocator

from bitdistiller.analysis.record import StudyReport
from bitdistiller.report.drawing import LOOK, MANY_POINTS, MARKERS, SERIES, Drawing, axes, far_apart, log_axis
from bitdistiller.results import TrainingRecord

LEGEND_SIGNS, LEGEND_KEY_SIGNS = 66, 6  # of legend text across a figure; that a key takes


def training_curves(report: StudyReport) -> dict[str, Drawing]:
    """Loss and validation perplexity along training, a colour per condition and a line per seed.

    Empty when no run of the study was trained.
    """
    trained = [(summary.condition, summary.training) for summary in report.runs if summary.training]
    return {f"training-{name}": drawing for name, drawing in _both_curves(trained).items()}


def run_curves(training: TrainingRecord) -> dict[str, Drawing]:
    """Loss and validation perplexity of one run; empty where none was recorded."""
    return _both_curves([("", training)])


def _both_curves(trained: Sequence[tuple[str, TrainingRecord]]) -> dict[str, Drawing]:
    drawings = {
        "loss": _curves(trained, "loss", "training loss", "Training loss per step"),
        "perplexity": _curves(
            trained, "validation_perplexity", "validation perplexity", "Perplexity on validation text along training"
        ),
    }
    return {name: drawing for name, drawing in drawings.items() if drawing is not None}


def _curves(trained: Sequence[tuple[str, TrainingRecord]], field: str, label: str, what: str) -> Drawing | None:
    """One quantity along training of runs, which come with the labels of their conditions."""
    lines = [(condition, _points(training, field)) for condition, training in trained]
    lines = [(condition, points) for condition, points in lines if points]
    if not lines:
        return None
    conditions, labelled = list(dict.fromkeys(condition for condition, _ in trained)), set()
    log = far_apart(pd.Series([value for _, points in lines for _, value in points]))
    axis = " (log axis)" if log else ""
    with matplotlib.rc_context(LOOK):
        figure, ax = axes("Measured: training", label + axis)
        for condition, points in lines:
            index = conditions.index(condition)
            ax.plot(
                *zip(*points, strict=True),
                color=SERIES[index % len(SERIES)],
                linewidth=1,
                alpha=0.85,
                marker=MARKERS[index % len(MARKERS)] if len(points) < MANY_POINTS else None,
                markersize=3,
                label=None if condition in labelled else condition,
            )
            labelled.add(condition)
        ax.set_xlabel("step")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if log:
            log_axis(ax)
        if len(conditions) > 1:
            figure.legend(loc="outside lower left", ncols=_legend_columns(conditions))
    seeds = "; one line a seed" if len(trained) > 1 else ""
    return Drawing(figure, f"{what}{axis}{seeds}.")


def _points(training: TrainingRecord, field: str) -> list[tuple[int, float]]:
    points = [(point.step, getattr(point, field)) for point in training.curve]
    return [(step, value) for step, value in points if value is not None]


def _legend_columns(labels: Sequence[str]) -> int:
    """As many columns of these labels as fit under a figure of one column."""
    return max(1, min(4, LEGEND_SIGNS // (max(map(len, labels), default=1) + LEGEND_KEY_SIGNS)))
