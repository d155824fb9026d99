"""Weights before and after training, drawn from what scoring leaves with every quantized run."""

from collections.abc import Mapping, Sequence
from typing import Literal

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bitdistiller.analysis.record import StudyReport
from bitdistiller.report.drawing import COLUMN_INCHES, LOOK, MANY_POINTS, MARKERS, MUTED, SERIES, Drawing, axes
from bitdistiller.results import Histogram, WeightSummary

_LATENT, _LOW_BIT = SERIES[0], SERIES[1]
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
            ("original", histogram.original, {"color": MUTED, "linestyle": (0, (3, 2))}),
            ("latent", histogram.latent, {"color": _LATENT}),
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
    """Error or share of zeros of every quantized layer, in the order of the model, a line a condition."""
    with matplotlib.rc_context(LOOK):
        figure, ax = axes("Measured: layers", _LAYER_LABELS[field])
        for index, (condition, summary) in enumerate(weights.items()):
            values = [getattr(layer, field) for layer in summary.layers]
            style = {"color": SERIES[index % len(SERIES)], "marker": MARKERS[index % len(MARKERS)]}
            spacing = max(1, len(values) // MANY_POINTS)
            ax.plot(
                range(1, len(values) + 1),
                values,
                label=condition,
                markersize=3,
                linewidth=1,
                markevery=spacing,
                **style,
            )
        ax.set_xlabel("quantized layer, in the order of the model")
        ax.set_ylim(bottom=0)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if len(weights) > 1:
            figure.legend(loc="outside lower left", ncols=2)
    captions = {
        "error": "Squared distance of each layer's low-bit weights from the original's, relative to their own square.",
        "zeros": "Share of each layer's low-bit weights that are zero.",
    }
    return Drawing(figure, captions[field])


def _weights(report: StudyReport, condition: str) -> WeightSummary | None:
    return next(run for run in report.runs if run.condition == condition).weights


def _short(layer: str) -> str:
    """``layers.3 mlp.up_proj`` of ``model.layers.3.mlp.up_proj``."""
    parts = layer.split(".")
    return f"layer {parts[2]}, {parts[-1]}" if len(parts) > 3 and parts[1] == "layers" else layer
