"""Figures with one look: column width, colours that colour-blind readers can tell apart, the same bytes every time.

Every series has a colour of the Okabe-Ito palette and a marker of its own, so that neither colour vision nor colour
print is needed. In SVG text is drawn as outlines (``svg.fonttype: path``), in PDF its font is embedded: a figure looks
the same on every machine, with no font to fetch, and its words are repeated in the caption and the title element. Ids
are salted with a constant and no date is written, so an unchanged figure is an unchanged file; where its numbers come
from is written into each.

A figure is one column wide (3.4 inches). Panels that belong together are separate figures that the page puts side by
side, since two panels in one image are too small to read on a phone. In the page the ink, paper and series colours
become CSS variables and so follow the reader's light or dark theme; the files on disk (SVG, PDF, PNG) have a white
ground.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from bitdistiller.analysis.published import paper_of
from bitdistiller.analysis.study import StudyReport
from bitdistiller.analysis.verdict import digits
from bitdistiller.results import TrainingRecord

COLUMN_INCHES = 3.4
SERIES = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#b07d00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
LOG_RATIO = 4  # values further apart get a logarithmic axis
LEGEND_SIGNS, LEGEND_KEY_SIGNS = 66, 6  # of legend text across a figure; that a key takes
MANY_POINTS = 20  # a curve with as many needs no markers
INK, MUTED, GRID, PAPER = "#1f2328", "#68707a", "#d8dce1", "#ffffff"
_THEMED = {INK: "--ink", MUTED: "--muted", GRID: "--line", PAPER: "--paper"} | {
    colour: f"--series-{index}" for index, colour in enumerate(SERIES, 1)
}
LOOK = {
    "svg.fonttype": "path",
    "svg.hashsalt": "bitdistiller",
    "pdf.fonttype": 42,  # embedded as TrueType, which submission systems ask for
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8.5,
    "legend.fontsize": 7,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "ytick.minor.width": 0,
    "lines.linewidth": 1.4,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.handlelength": 1.5,
    "legend.columnspacing": 0.9,
}


@dataclass(frozen=True)
class Drawing:
    """A figure and the sentence under it."""

    figure: Figure
    caption: str


def axes(title: str, ylabel: str, height: float = 2.55) -> tuple[Figure, Axes]:
    """An empty figure of one column; draw inside ``matplotlib.rc_context(LOOK)``."""
    figure = Figure(figsize=(COLUMN_INCHES, height))
    ax = figure.add_subplot()
    ax.set_title(title)
    ax.set_ylabel(ylabel)
    return figure, ax


def measured_panel(
    rows: pd.DataFrame,
    series: Sequence[tuple[str, str]],
    task: str,
    ylabel: str,
    caption: str,
    log: bool = False,
    chance: float | None = None,
) -> Drawing:
    """Conditions of our own runs in order: seeds as small points, means with 95 % intervals, numbers beside them.

    Args:
        rows: the study's tidy table.
        series: pairs of metric and legend label (empty for a single series).
        task: task of these metrics.
        log: logarithmic axis.
        chance: score of guessing, drawn as a dashed line. Conditions without a level stand apart on the right.
    """
    measured = rows[(rows["source"] == "measured") & (rows["task"] == task)]
    places = _places(measured[measured["kind"] == "mean"])
    with matplotlib.rc_context(LOOK):
        figure, ax = axes(_measured(list(measured[measured["kind"] == "mean"]["model"])), ylabel)
        for index, (metric, name) in enumerate(series):
            _draw_series(ax, measured[measured["metric"] == metric], places, index, name)
        means = measured[(measured["kind"] == "mean") & measured["metric"].isin([metric for metric, _ in series])]
        _number_means(ax, means, places, log)
        _finish(ax, places, log, chance)
        if len(series) > 1:
            ax.legend(loc="best")
    return Drawing(figure, caption)


def comparison_figures(report: StudyReport) -> dict[str, Drawing]:
    """Perplexity and mean accuracy of all conditions, and below them what the papers print of the same conditions."""
    rows = report.frame()
    perplexity = rows[(rows["kind"] == "mean") & (rows["metric"] == "perplexity")]
    log = _far_apart(perplexity["value"])
    chance = sum(report.chance.values()) / len(report.chance) if report.chance else None
    axis = "perplexity (log axis)" if log else "perplexity"
    drawings = {
        "perplexity": conditions_panel(
            rows, "perplexity", perplexity["task"].iloc[0], axis, f"Held-out {axis} with 95 % intervals.", log
        )
    }
    if chance is not None:
        drawings["accuracy"] = conditions_panel(
            rows,
            "acc",
            "mean",
            "mean accuracy",
            "Mean accuracy over tasks with 95 % intervals; the dashed line is chance.",
            chance=chance,
        )
    for name, metric, label, data in (
        ("perplexity", "perplexity", "perplexity", "WikiText-2"),
        ("accuracy", "acc", "mean accuracy", "other tasks"),
    ):
        printed = rows[(rows["kind"] == "published") & (rows["metric"] == metric)]
        printed = printed[(printed["task"] == "mean") | (printed["metric"] == "perplexity")]
        if len(printed):
            drawings[f"{name}-published"] = conditions_panel(
                rows,
                metric,
                printed["task"].iloc[0],
                label,
                f"{label.capitalize()} as the papers print it: other models, {data}.",
                _far_apart(printed["value"]),
                kind="published",
            )
    return drawings


def _far_apart(values: pd.Series) -> bool:
    return bool(values.max() > LOG_RATIO * values.min())


def conditions_panel(
    rows: pd.DataFrame,
    metric: str,
    task: str,
    xlabel: str,
    caption: str,
    log: bool = False,
    chance: float | None = None,
    kind: Literal["mean", "published"] = "mean",
) -> Drawing:
    """Conditions without an order of their own, one under the other, with 95 % intervals where there are any.

    Args:
        rows: the study's tidy table.
        metric, task: what is shown.
        log: logarithmic axis.
        chance: score of guessing, drawn as a dashed line.
        kind: our own means, with seeds as small points, or published numbers, one marker a model.
    """
    shown = rows[(rows["task"] == task) & (rows["metric"] == metric)]
    centres = shown[shown["kind"] == kind]
    places = {name: -float(place) for place, name in enumerate(dict.fromkeys(centres["condition"]))}
    models = list(dict.fromkeys(zip(centres["source"], centres["model"], strict=True)))
    measured = kind == "mean"
    with matplotlib.rc_context(LOOK | {"axes.grid.axis": "x"}):
        figure = Figure(figsize=(COLUMN_INCHES, 0.8 + 0.23 * len(places) + (0 if measured else 0.2 * len(models))))
        ax = figure.add_subplot()
        ax.set_title(_measured([model for _, model in models]) if measured else "Published: other models")
        ax.set_xlabel(xlabel)
        for index, (source, model) in enumerate(models):
            part = centres[(centres["source"] == source) & (centres["model"] == model)]
            label = None if measured else f"{model} ({paper_of(source)})"
            _draw_conditions(ax, part, places, 0 if measured else index, label)
        if measured:
            _draw_seeds(ax, shown[shown["kind"] == "run"], places)
            _number_conditions(ax, centres, places, log)
        if log:
            log_axis(ax, "x")
        else:
            ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        ax.set_yticks(list(places.values()), list(places))
        ax.set_ylim(min(places.values()) - 0.6, 0.6)
        if chance is not None:
            ax.axvline(chance, color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
        if not measured:
            figure.legend(loc="outside lower left")
    return Drawing(figure, caption)


def _draw_conditions(ax: Axes, part: pd.DataFrame, places: dict[str, float], index: int, label: str | None) -> None:
    low, high = (part[bound].astype(float).fillna(part["value"]) for bound in ("low", "high"))
    ax.errorbar(
        part["value"],
        [places[condition] for condition in part["condition"]],
        xerr=[(part["value"] - low).clip(lower=0), (high - part["value"]).clip(lower=0)],
        fmt=MARKERS[index % len(MARKERS)],
        color=SERIES[index % len(SERIES)],
        markeredgecolor=PAPER,
        markeredgewidth=0.7,
        markersize=5.5,
        elinewidth=1.2,
        capsize=2,
        label=label,
        zorder=3,
    )


def _draw_seeds(ax: Axes, seeds: pd.DataFrame, places: dict[str, float]) -> None:
    seeds = seeds[seeds["condition"].map(seeds["condition"].value_counts()).gt(1)]
    heights = [places[condition] - 0.25 for condition in seeds["condition"]]
    ax.scatter(seeds["value"], heights, s=7, color=SERIES[0], alpha=0.55, linewidths=0)


def _number_conditions(ax: Axes, means: pd.DataFrame, places: dict[str, float], log: bool) -> None:
    """Every mean as a number on the right edge."""
    edge = ax.twinx()
    edge.set_yticks([places[c] for c in means["condition"]], [_format(value, log) for value in means["value"]])
    edge.set_ylim(min(places.values()) - 0.6, 0.6)
    edge.tick_params(length=0, labelsize=7)
    edge.grid(visible=False)


def size_panel(rows: pd.DataFrame, metric: str, xlabel: str, caption: str) -> Drawing:
    """A metric against the level of its condition, a line a model, on logarithmic axes."""
    means = rows[(rows["kind"] == "mean") & (rows["metric"] == metric)]
    with matplotlib.rc_context(LOOK):
        figure, ax = axes("Measured", f"{metric} (log axis)", height=2.9)
        for index, (model, part) in enumerate(means.groupby("model", sort=False)):
            part = part.sort_values("level")
            spread = [(part["value"] - part["low"]).clip(lower=0), (part["high"] - part["value"]).clip(lower=0)]
            style = {"color": SERIES[index % len(SERIES)], "marker": MARKERS[index % len(MARKERS)]}
            ax.errorbar(part["level"], part["value"], yerr=spread, label=model, elinewidth=1, capsize=2, **style)
        ax.set_xlabel(xlabel)
        log_axis(ax, "x")
        log_axis(ax)
        figure.legend(loc="outside lower left", ncols=3)
    return Drawing(figure, caption)


def published_panel(
    rows: pd.DataFrame,
    metric: str,
    task: str,
    ylabel: str,
    caption: str,
    log: bool = False,
    chance: float | None = None,
) -> Drawing:
    """The same quantity as the papers print it, one line a model; never in one panel with our runs."""
    everything = rows[rows["kind"].isin(["mean", "published"])]
    places = _places(everything)
    printed = rows[(rows["kind"] == "published") & (rows["task"] == task) & (rows["metric"] == metric)]
    with matplotlib.rc_context(LOOK):
        figure, ax = axes("Published: other models", ylabel, height=2.95)
        for index, ((source, model), part) in enumerate(printed.groupby(["source", "model"], sort=False)):
            numbered = part[part["level"].notna()]
            style = {"color": SERIES[index % len(SERIES)], "marker": MARKERS[index % len(MARKERS)]}
            ax.plot(_x(numbered, places), numbered["value"], label=f"{model} ({paper_of(source)})", **style)
            apart = part[part["level"].isna()]
            ax.plot(_x(apart, places), apart["value"], linestyle="none", **style)
        _finish(ax, places, log, chance)
        figure.legend(loc="outside lower left", ncols=2)
    return Drawing(figure, caption)


def _measured(models: Sequence[str]) -> str:
    """Title of our own numbers; several models would not fit into it."""
    return f"Measured: {models[0]}" if len(set(models)) == 1 else f"Measured: {len(set(models))} models"


def _places(rows: pd.DataFrame) -> dict[str, float]:
    """x of every condition: levels evenly spaced from high to low, conditions without one apart on the right."""
    conditions = rows[["condition", "level"]].drop_duplicates("condition")
    ordered = conditions.dropna().sort_values("level", ascending=False, kind="stable")["condition"]
    apart = conditions[conditions["level"].isna()]["condition"]
    return {name: float(x) for x, name in enumerate(ordered)} | {
        name: len(ordered) + 0.35 + x for x, name in enumerate(apart)
    }


def _x(rows: pd.DataFrame, places: dict[str, float]) -> np.ndarray:
    return np.array([places[condition] for condition in rows["condition"]])


def _draw_series(ax: Axes, part: pd.DataFrame, places: dict[str, float], index: int, name: str) -> None:
    colour, marker = SERIES[index], MARKERS[index]
    seeds, means = part[part["kind"] == "run"], part[part["kind"] == "mean"]
    line = means[means["level"].notna()]
    ax.plot(_x(line, places), line["value"], color=colour)
    spread = [(means["value"] - means["low"]).clip(lower=0), (means["high"] - means["value"]).clip(lower=0)]
    ax.errorbar(
        _x(means, places),
        means["value"],
        yerr=spread,
        fmt=marker,
        color=colour,
        markeredgecolor=PAPER,
        markeredgewidth=0.7,
        markersize=6.5,
        elinewidth=1.2,
        capsize=2.5,
        label=name or None,
        zorder=3,
    )
    several = seeds["condition"].map(seeds["condition"].value_counts()) > 1
    seeds = seeds[several.astype(bool)]
    ax.scatter(_x(seeds, places) - 0.16, seeds["value"], s=9, color=colour, alpha=0.55, linewidths=0)


def _number_means(ax: Axes, means: pd.DataFrame, places: dict[str, float], log: bool) -> None:
    """Write each mean beside its interval: above the highest series of a condition, below the others."""
    halo = [withStroke(linewidth=2.2, foreground=PAPER)]
    top = means.groupby("condition")["value"].idxmax()
    for label, row in means.iterrows():
        above = label == top[row["condition"]]
        ax.annotate(
            _format(row["value"], log),
            (places[row["condition"]], row["high"] if above else row["low"]),
            xytext=(0, 4 if above else -4),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            fontsize=7,
            color=INK,
            path_effects=halo,
            zorder=5,
        )


def _format(value: float, log: bool) -> str:
    return digits(value, 2 if not log else 0 if value >= 100 else 1)


def log_axis(ax: Axes, side: Literal["x", "y"] = "y") -> None:
    """A logarithmic axis with readable numbers; powers of ten alone where more would crowd."""
    ax.set(**{f"{side}scale": "log"})
    axis, (low, high) = getattr(ax, f"{side}axis"), getattr(ax, f"get_{side}lim")()
    crowded = high / low > (1e3 if side == "y" else 1e2)
    axis.set_major_locator(LogLocator(subs=(1,) if crowded else (1, 2, 5), numticks=5 if crowded and side == "x" else 12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _finish(ax: Axes, places: dict[str, float], log: bool, chance: float | None) -> None:
    ax.set_xticks(list(places.values()), [name.replace(" ", "\n", 1) for name in places])
    ax.set_xlim(-0.45, max(places.values()) + 0.45)
    whole = [x for x in places.values() if x.is_integer()]
    if len(whole) < len(places):
        ax.axvline(max(whole) + 0.675, color=GRID, linewidth=0.8)
    if log:
        log_axis(ax)
        low, high = ax.get_ylim()
        ax.set_ylim(low, high * (high / low) ** 0.08)
    else:
        ax.margins(y=0.14)
        ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if chance is not None:
        ax.axhline(chance, color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
        ax.annotate(
            f"chance {chance:.2f}",
            (-0.4, chance),
            xytext=(0, -3),
            textcoords="offset points",
            va="top",
            fontsize=7,
            color=MUTED,
        )


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
    log = _far_apart(pd.Series([value for _, points in lines for _, value in points]))
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


def save(drawing: Drawing, stem: Path, source: str) -> str:
    """Write ``STEM.svg``, ``STEM.pdf`` and ``STEM.png`` (300 dpi) and return the SVG; equal drawings give equal bytes.

    Args:
        source: where its numbers come from; all three files carry it as metadata.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    svg = to_svg(drawing, source)
    stem.with_suffix(".svg").write_text(svg)
    drawing.figure.set_layout_engine(
        "none"
    )  # what the first drawing laid out stays; laying out costs as much as drawing
    undated = {"CreationDate": None, "Creator": None, "Producer": None}
    with matplotlib.rc_context(LOOK):
        drawing.figure.savefig(stem.with_suffix(".pdf"), metadata=undated | {"Subject": source})
        drawing.figure.savefig(stem.with_suffix(".png"), dpi=300, metadata={"Software": None, "Description": source})
    return svg


def to_svg(drawing: Drawing, source: str) -> str:
    """The figure as SVG, with ``source`` as its metadata."""
    buffer = StringIO()
    with matplotlib.rc_context(LOOK):
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        drawing.figure.savefig(buffer, format="svg", metadata=nothing | {"Description": source})
    return buffer.getvalue()


def inline_svg(source: str, name: str, title: str) -> str:
    """An SVG file's source as a piece of a page: themed colours, ids of its own, no prologue, a title for readers.

    Args:
        name: prefix that keeps the ids of several figures in one page apart.
        title: what a screen reader says.
    """
    body = source[source.index("<svg") :]
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    for colour, variable in _THEMED.items():
        body = body.replace(colour, f"var({variable})")
    opening = re.search(r"<svg[^>]*>", body).group()
    box = re.search(r'viewBox="[^"]+"', opening).group()
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box} role="img">'
    return head + f"<title>{escape(title)}</title>" + body[len(opening) :]
