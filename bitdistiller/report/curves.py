"""What training left behind: loss and validation perplexity along the steps.

Losses of different kinds are different quantities: where a study compares objectives, no figure puts them on one axis,
and each run's own page has its loss. A run that went on from a checkpoint was validated once more there; only the
validations that all runs have are drawn.
"""

from collections.abc import Sequence
from math import ceil

import matplotlib
import pandas as pd
from matplotlib.ticker import MaxNLocator

from bitdistiller.analysis.record import StudyReport
from bitdistiller.config import Params
from bitdistiller.report.drawing import LOOK, MANY_POINTS, Drawing, axes, far_apart, log_axis, series_style
from bitdistiller.results import TrainingRecord

LEGEND_SIGNS, LEGEND_KEY_SIGNS = 66, 6  # of legend text across a figure; that a key takes


def training_curves(report: StudyReport, params: Params | None = None) -> dict[str, Drawing]:
    """Loss and validation perplexity along training, a colour per condition and a line per seed.

    Empty when no run of the study was trained; without the loss where runs have losses of different kinds.

    Args:
        params: the scale's, from which captions say how long a validation sequence is.
    """
    trained = [(summary.condition, summary.training) for summary in report.runs if summary.training]
    drawings = _both_curves(trained, params)
    if len({_objective(training) for _, training in trained}) > 1:
        drawings.pop("loss", None)
    return {f"training-{name}": drawing for name, drawing in drawings.items()}


def run_curves(training: TrainingRecord, params: Params | None = None) -> dict[str, Drawing]:
    """Loss and validation perplexity of one run; empty where none was recorded."""
    return _both_curves([("", training)], params)


def _objective(training: TrainingRecord) -> tuple:
    """What a loss has to share with another to be the same quantity."""
    loss, gamma, *rest = (_used(training, "run", key) for key in ("loss", "gamma", "temperature", "ce_weight"))
    return loss, gamma if loss == "cakld" else None, *rest


def _used(training: TrainingRecord, part: str, key: str) -> object:
    """A parameter of the run or of its data; None in a record that lacks it."""
    return training.parameters_used.get(part, {}).get(key)


def _both_curves(trained: Sequence[tuple[str, TrainingRecord]], params: Params | None) -> dict[str, Drawing]:
    drawings = {
        "loss": _curves(trained, "loss", "training loss", "Training loss per step"),
        "perplexity": _curves(
            trained,
            "validation_perplexity",
            "validation perplexity",
            "Perplexity along training",
            f"On {_validation_text([training for _, training in trained], params)}: without an interval, and not the "
            "held-out text that scores are of.",
        ),
    }
    return {name: drawing for name, drawing in drawings.items() if drawing is not None}


def _validation_text(trained: Sequence[TrainingRecord], params: Params | None) -> str:
    """How much text perplexity along training is measured on, as far as the records and parameters say."""
    counts = {_used(training, "run", "validation_sequences") for training in trained} - {None}
    texts = params.texts if params else {}
    names = {_used(training, "data", "training_text") for training in trained} & set(texts)
    words = f"{_range(counts)} validation sequences" if counts else "validation sequences"
    return words + (f" of {_range({texts[name].length for name in names})} tokens" if names else "")


def _range(values: set[int]) -> str:
    return f"{min(values)}" if len(values) == 1 else f"{min(values)} to {max(values)}"


def _curves(
    trained: Sequence[tuple[str, TrainingRecord]], field: str, label: str, what: str, note: str = ""
) -> Drawing | None:
    """One quantity along training of runs, which come with the labels of their conditions."""
    lines = [(condition, _points(training, field)) for condition, training in trained]
    lines = [(condition, points) for condition, points in lines if points]
    if not lines:
        return None
    conditions, labelled = list(dict.fromkeys(condition for condition, _ in trained)), set()
    columns = _legend_columns(conditions)
    log = far_apart(pd.Series([value for _, points in lines for _, value in points]))
    axis = " (log axis)" if log else ""
    with matplotlib.rc_context(LOOK):
        figure, ax = axes("Measured: training", label + axis, legend_rows=ceil(len(conditions) / columns))
        for condition, points in lines:
            style = series_style(conditions.index(condition)) | ({"marker": None} if len(points) >= MANY_POINTS else {})
            label = None if condition in labelled else condition
            ax.plot(*zip(*points, strict=True), linewidth=1, alpha=0.85, markersize=3, label=label, **style)
            labelled.add(condition)
        ax.set_xlabel("step")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if log:
            log_axis(ax)
        if len(conditions) > 1:
            figure.legend(loc="outside lower left", ncols=columns)
    seeds = "; one line a seed" if len(trained) > 1 else ""
    return Drawing(figure, f"{what}{axis}{seeds}. {note}".rstrip())


def _points(training: TrainingRecord, field: str) -> list[tuple[int, float]]:
    points = training.curve if field == "loss" else training.validations
    return [(point.step, getattr(point, field)) for point in points if getattr(point, field) is not None]


def _legend_columns(labels: Sequence[str]) -> int:
    """As many columns of these labels as fit under a figure of one column."""
    return max(1, min(4, LEGEND_SIGNS // (max(map(len, labels), default=1) + LEGEND_KEY_SIGNS)))
