"""Weights before and after training, drawn from the histograms that scoring leaves with every quantized run."""

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from bitdistiller.analysis.study import StudyReport
from bitdistiller.report.figures import COLUMN_INCHES, LOOK, MUTED, SERIES, Drawing
from bitdistiller.results import Histogram, LayerSummary

_LATENT, _LOW_BIT = SERIES[0], SERIES[1]


def weight_distributions(report: StudyReport, conditions: Sequence[str]) -> dict[str, Drawing]:
    """One figure a condition: the middle layer's weights of the original, latent after training, and low-bit."""
    drawings = {}
    for condition in conditions:
        run = next(run for run in report.runs if run.condition == condition)
        if run.weights is None:
            continue
        histogram = run.weights.histograms[len(run.weights.histograms) // 2]
        layer = next(layer for layer in run.weights.layers if layer.name == histogram.layer)
        name = "weights-" + "".join(sign if sign.isalnum() else "-" for sign in condition.lower())
        drawings[name] = _distribution(condition, histogram, layer)
    return drawings


def _distribution(condition: str, histogram: Histogram, layer: LayerSummary) -> Drawing:
    total = sum(histogram.original)
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(COLUMN_INCHES, 2.4))
        ax = figure.add_subplot()
        ax.set_title(f"{condition}\nentropy of the codes: {layer.entropy:.2f} bits")
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
