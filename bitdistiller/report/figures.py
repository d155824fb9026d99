"""Panels: a study's conditions against a number, measured or published, never both in one."""

from collections.abc import Sequence
from typing import Literal

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from bitdistiller.analysis.published import paper_of
from bitdistiller.analysis.record import StudyReport
from bitdistiller.analysis.verdict import digits
from bitdistiller.report.drawing import (
    COLUMN_INCHES,
    GRID,
    INK,
    LOG_RATIO,
    LOOK,
    MARKERS,
    MUTED,
    PAPER,
    SERIES,
    Drawing,
    axes,
    far_apart,
    log_axis,
    series_style,
)

ALONE = (
    "Whiskers are of each model alone and may overlap where a difference is certain: differences are judged in pairs, "
    "on the same items."
)


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
    return Drawing(figure, _with_whiskers(caption, means))


def comparison_figures(report: StudyReport) -> dict[str, Drawing]:
    """Perplexity and mean accuracy of all conditions, and below them what the papers print of the same conditions."""
    rows = report.frame()
    perplexity = rows[(rows["kind"] == "mean") & (rows["metric"] == "perplexity")]
    log = far_apart(perplexity["value"])
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
                far_apart(printed["value"]),
                kind="published",
            )
    return drawings


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
        title = _measured([model for _, model in models]) if measured else "Published: other models"
        figure.suptitle(title, x=0.01, horizontalalignment="left")  # above long labels there is no room over the axes
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
    return Drawing(figure, _with_whiskers(caption, centres))


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


def size_panel(rows: pd.DataFrame, metric: str, xlabel: str, caption: str, close: bool = False) -> Drawing:
    """A metric against the level of its condition, a line a model; axes are logarithmic where values want it.

    Args:
        close: only what is within ``LOG_RATIO`` times the least value, without whiskers and with the bits beside each
            point: the first word after the comma of its condition (``1m, 4 bits``).
    """
    means = rows[(rows["kind"] == "mean") & (rows["metric"] == metric)]
    if close:
        means = means[means["value"] <= LOG_RATIO * means["value"].min()]
    log = far_apart(means["value"])
    with matplotlib.rc_context(LOOK):
        figure, ax = axes("Measured", f"{metric} (log axis)" if log else metric, height=2.9)
        for index, (model, part) in enumerate(means.groupby("model", sort=False)):
            part = part.sort_values("level")
            spread = [(part["value"] - part["low"]).clip(lower=0), (part["high"] - part["value"]).clip(lower=0)]
            style = series_style(index) | {"label": model.partition("@")[0]}
            ax.errorbar(part["level"], part["value"], yerr=None if close else spread, elinewidth=1, capsize=2, **style)
            for condition, x, y in part[["condition", "level", "value"]].itertuples(index=False) if close else ():
                bits = condition.rpartition(", ")[2].partition(" ")[0]
                ax.annotate(bits, (x, y), (3, 3), textcoords="offset points", fontsize=7, color=style["color"])
        ax.set_xlabel(xlabel)
        log_axis(ax, "x")
        if log:
            log_axis(ax)
        figure.legend(loc="outside lower left", ncols=3)
    return Drawing(figure, caption if close else _with_whiskers(caption, means))


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
            style = series_style(index)
            ax.plot(_x(numbered, places), numbered["value"], label=f"{model} ({paper_of(source)})", **style)
            apart = part[part["level"].isna()]
            ax.plot(_x(apart, places), apart["value"], **style | {"linestyle": "none"})
        _finish(ax, places, log, chance)
        figure.legend(loc="outside lower left", ncols=2)
    return Drawing(figure, caption)


def _with_whiskers(caption: str, means: pd.DataFrame) -> str:
    """The caption, and how to read the intervals of several models where there are any."""
    return f"{caption} {ALONE}" if means["low"].notna().sum() > 1 else caption


def _measured(models: Sequence[str]) -> str:
    """Title of our own numbers; several models would not fit into it."""
    name = models[0].partition("@")[0]  # a commit would not fit either
    return f"Measured: {name}" if len(set(models)) == 1 else f"Measured: {len(set(models))} models"


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
    return digits(value, 0 if value >= 100 else 1 if log else 2)


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
