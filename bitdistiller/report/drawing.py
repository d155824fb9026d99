"""How every figure looks, and how it is written.

Colours are ones that colour-blind readers can tell apart, and the same figure is the same bytes every time.

Every series has a colour of the Okabe-Ito palette and a marker of its own, so that neither colour vision nor colour
print is needed; where there are more series than colours, the further ones are dashed. In SVG text is drawn as outlines
(``svg.fonttype: path``), in PDF its font is embedded: a figure looks the same on every machine, with no font to fetch,
and its words are repeated in the caption and the title element. Ids are salted with a constant and no date is written,
so an unchanged figure is an unchanged file; where its numbers come from is written into each.

A figure is one column wide (3.4 inches). Panels that belong together are separate figures that the page puts side by
side, since two panels in one image are too small to read on a phone. In the page the ink, paper and series colours
become CSS variables and so follow the reader's light or dark theme; the files on disk (SVG, PDF, PNG) have a white
ground.
"""

import re
from dataclasses import dataclass
from html import escape
from io import StringIO
from pathlib import Path
from typing import Literal
from zlib import crc32

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

COLUMN_INCHES, ROW_INCHES = 3.4, 0.17  # width of a figure; height of a row of its legend
SERIES = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#b07d00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # one more than colours: both together repeat late
LOG_RATIO = 4  # values further apart get a logarithmic axis
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
    "figure.titlesize": 8.5,
    "figure.titleweight": "bold",
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


def axes(title: str, ylabel: str, height: float = 2.55, legend_rows: int = 0) -> tuple[Figure, Axes]:
    """An empty figure of one column; draw inside ``matplotlib.rc_context(LOOK)``.

    Args:
        height: inches, of which a legend of up to two rows below the axes is a part; further rows add to it.
    """
    figure = Figure(figsize=(COLUMN_INCHES, height + ROW_INCHES * max(0, legend_rows - 2)))
    ax = figure.add_subplot()
    ax.set_title(title)
    ax.set_ylabel(ylabel)
    return figure, ax


def series_style(index: int) -> dict:
    """Colour, marker and line of a series, by its place among those of a figure."""
    lines = ("-", "--", ":")
    return {
        "color": SERIES[index % len(SERIES)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": lines[index // len(SERIES) % len(lines)],
    }


def far_apart(values: pd.Series) -> bool:
    """Whether values want a logarithmic axis."""
    return bool(values.max() > LOG_RATIO * values.min())


def log_axis(ax: Axes, side: Literal["x", "y"] = "y") -> None:
    """A logarithmic axis with readable numbers; fewer of them where more would crowd."""
    ax.set(**{f"{side}scale": "log"})
    axis, (low, high) = getattr(ax, f"{side}axis"), getattr(ax, f"get_{side}lim")()
    room = 1e3 if side == "y" else 1e2  # labels stand beside one another along x
    crowded = high / low > room
    subs = (1,) if crowded else (1, 3) if high / low > room / 10 else (1, 2, 5)
    axis.set_major_locator(LogLocator(subs=subs, numticks=3 if crowded and side == "x" else 12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


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

    Ids are short, and only those that are referred to are kept: every letter of a label is a reference, and a page may
    have twenty figures.

    Args:
        name: what keeps the ids of several figures in one page apart.
        title: what a screen reader says.
    """
    body = source[source.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r">\s+<", "><", body)
    prefix = f"f{crc32(name.encode()):x}"
    referred = dict.fromkeys(re.findall(r"(?:href=\"|url\()#([^\")]+)", body))
    short = {old: f"{prefix}-{index}" for index, old in enumerate(referred)}
    body = re.sub(r' id="([^"]+)"', lambda found: f' id="{short[found[1]]}"' if found[1] in short else "", body)
    body = re.sub(r"(href=\"|url\()#([^\")]+)", lambda found: f"{found[1]}#{short[found[2]]}", body)
    for colour, variable in _THEMED.items():
        body = body.replace(colour, f"var({variable})")
    opening = re.search(r"<svg[^>]*>", body).group()
    box = re.search(r'viewBox="[^"]+"', opening).group()
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box} role="img">'
    return head + f"<title>{escape(title)}</title>" + body[len(opening) :]
