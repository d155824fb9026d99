"""Weights before and after training, drawn from what scoring leaves with every quantized run."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from bitdistiller.analysis.record import StudyReport
from bitdistiller.report.drawing import (
    COLUMN_INCHES,
    GRID,
    LOOK,
    MANY_POINTS,
    MUTED,
    SERIES,
    Drawing,
    axes,
    series_style,
)
from bitdistiller.results import Histogram, LayerSummary, WeightSummary

_LATENT, _LOW_BIT = SERIES[0], SERIES[1]
_SAME = 0.03  # nearer, two lines of shares are one to the eye
_LAYER_LABELS = {"error": "weight error", "zeros": "share of zeros"}


def weight_distributions(report: StudyReport, conditions: Sequence[str]) -> dict[str, Drawing]:
    """A figure a condition and layer: the first, middle and last quantized layer before and after training."""
    drawings = {}
    for condition in conditions:
        weights = _weights(report, condition)
        if weights is None:
            continue
        stem = "weights-" + "".join(sign if sign.isalnum() else "-" for sign in condition.lower())
        for place, histogram in zip(("first", "middle", "last"), weights.histograms, strict=False):
            drawings[f"{stem}-{place}"] = weight_distribution(condition, weights, histogram)
    return drawings


def weight_distribution(condition: str, weights: WeightSummary, histogram: Histogram) -> Drawing:
    """One layer's weights of the original, latent after training, and low-bit."""
    layer = next(layer for layer in weights.layers if layer.name == histogram.layer)
    total = sum(histogram.original)
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(COLUMN_INCHES, 2.5))
        ax = figure.add_subplot()
        ax.set_title(f"{condition}: {_short(layer.name)}\nentropy of the codes: {layer.entropy:.2f} bits")
        kinds = (
            ("low-bit", histogram.low_bit, {"fill": True, "color": _LOW_BIT, "alpha": 0.45}),
            ("original", histogram.original, {"color": MUTED, "linewidth": 3, "alpha": 0.6}),  # seen on both sides of
            ("latent", histogram.latent, {"color": _LATENT, "linewidth": 1}),
        )
        for label, counts, style in kinds:
            ax.stairs([count / total for count in counts], histogram.edges, label=label, **style)
        ax.set_yscale("log")
        ax.set_xlabel("weight")
        ax.set_ylabel("share of weights (log axis)")
        figure.legend(loc="outside lower left", ncols=3)
    caption = (
        f"Weights of {histogram.layer}, {condition}: of the original, latent after training, and the low-bit values "
        f"that these become ({layer.zeros:.0%} of them zero). The outermost bins hold what lies beyond."
    )
    return Drawing(figure, caption)


def layer_figures(report: StudyReport, conditions: Sequence[str]) -> dict[str, Drawing]:
    """Error and zeros of every quantized layer, a line a condition; empty where no condition is quantized."""
    found = {condition: weights for condition in conditions if (weights := _weights(report, condition))}
    return {f"layers-{field}": layers_panel(found, field) for field in _LAYER_LABELS} if found else {}


def layers_panel(weights: Mapping[str, WeightSummary], field: Literal["error", "zeros"]) -> Drawing:
    """Error or share of zeros of every quantized layer, a line a condition: kinds of matrix apart, each along depth.

    A line that lies on an earlier one is dashed, and markers are hollow, so that both show.
    """
    with matplotlib.rc_context(LOOK):
        figure, ax = axes("Measured: layers", _LAYER_LABELS[field], legend_rows=ceil(len(weights) / 2))
        drawn: list[list[float]] = []
        for index, (condition, summary) in enumerate(weights.items()):
            values = [getattr(layer, field) for layer in summary.layers]
            below = sum(max(map(abs, np.subtract(values, other))) < _SAME for other in drawn)
            drawn.append(values)
            style = series_style(index) | {"markevery": max(1, len(values) // MANY_POINTS)}
            if below:
                style["linestyle"] = (0, (3, 3 * below))
            kinds = _by_kind(summary)
            for place, layers in enumerate(kinds.values()):
                ax.plot(
                    [place + (depth + 1) / (len(layers) + 1) for depth in range(len(layers))],
                    [getattr(layer, field) for layer in layers],
                    label=condition if place == 0 else None,
                    linewidth=1,
                    markersize=4,
                    markerfacecolor="none",
                    **style,
                )
        ax.set_xticks([place + 0.5 for place in range(len(kinds))], list(kinds))
        for place in range(1, len(kinds)):
            ax.axvline(place, color=GRID, linewidth=0.6)
        ax.set_xlabel("kind of matrix, each from the first layer to the last")
        ax.set_ylim(bottom=-0.04 * ax.get_ylim()[1])
        if len(weights) > 1:
            figure.legend(loc="outside lower left", ncols=2)
    captions = {
        "error": "Squared distance of each layer's low-bit weights from the original's, relative to their own square.",
        "zeros": "Share of each layer's low-bit weights that are zero.",
    }
    return Drawing(figure, captions[field])


def _by_kind(summary: WeightSummary) -> dict[str, list[LayerSummary]]:
    """Layers of each kind of matrix (``q``, ``down``), in the order of the model."""
    kinds: dict[str, list[LayerSummary]] = {}
    for layer in summary.layers:
        kinds.setdefault(layer.name.rpartition(".")[2].removesuffix("_proj"), []).append(layer)
    return kinds


def _weights(report: StudyReport, condition: str) -> WeightSummary | None:
    return next(run for run in report.runs if run.condition == condition).weights


def _short(layer: str) -> str:
    """``layers.3 mlp.up_proj`` of ``model.layers.3.mlp.up_proj``."""
    parts = layer.split(".")
    return f"layer {parts[2]}, {parts[-1]}" if len(parts) > 3 and parts[1] == "layers" else layer
