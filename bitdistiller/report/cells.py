"""Tables for people: one frame of cells, written as Markdown, HTML, LaTeX (booktabs) and CSV.

A cell is a number that knows the row of the tidy table it was read from, or a piece of text. Numbers are rounded here
and nowhere else: Markdown and HTML show them with their 95 % interval, LaTeX with their standard error, as papers do,
and CSV holds all digits with the error in a column of its own. Since a cell keeps its row, whoever has the frame can
say which runs a printed number comes from (``trace``). The best of a column is bold where one end of it is better;
full precision does not compete.
"""

import textwrap
from dataclasses import dataclass, replace
from html import escape

import pandas as pd

from bitdistiller.analysis.record import Row
from bitdistiller.analysis.verdict import digits
from bitdistiller.report.latex import escape as escape_latex

EMPTY = "–"
QUANTITIES = {
    "perplexity": "Perplexity",
    "worst_share": "Log perplexity from worst 1 % of tokens, %",
    "acc": "Mean accuracy, %",
    "retention": "Accuracy kept",
    "retention_above_chance": "Accuracy kept, chance subtracted",
    "kl": "KL to the original, nats",
    "agreement": "Top-1 agreement, %",
    "flips": "Flips, %",
    "zeros": "Zeros, %",
    "entropy": "Code entropy, bits",
    "error": "Weight error",
    "tokens": "Training tokens",
    "seconds": "Training, s",
    "peak_gib": "Memory, GiB",
    "joules": "Energy, J",
    "training_samples": "Training samples",
    "gpu_hours": "GPU hours",
}
# Scores of knowledge, reasoning and code have a column for each task.
BENCHMARKS = {
    ("mmlu", "acc"): "MMLU, %",
    ("mmlu", "acc_by_size"): "MMLU by size, %",
    ("gsm8k", "exact_match_flexible"): "GSM8K, %",
    ("gsm8k", "exact_match_strict"): "GSM8K, strict, %",
    ("humaneval", "pass_at_1"): "HumanEval pass@1, %",
    **{("humaneval", f"pass_at_{k}"): f"HumanEval pass@{k}, %" for k in range(2, 201)},  # of at most 200 samples
    ("gsm8k", "bits_per_byte"): "GSM8K solutions, bits a byte",
    ("humaneval", "bits_per_byte"): "HumanEval solutions, bits a byte",
}
PERCENT = ("worst_share", "acc", "agreement", "flips", "zeros", "exact_match", "pass_at")
LOWER_IS_BETTER = {"perplexity": True, "kl": True, "flips": True, "acc": False, "agreement": False}
LOWER_IS_BETTER |= {"retention": False, "retention_above_chance": False, "acc_by_size": False, "bits_per_byte": True}
LOWER_IS_BETTER |= {metric: False for _, metric in BENCHMARKS if metric != "bits_per_byte"}
INTERVALS = "with 95 % intervals"  # in a title; LaTeX tables have standard errors instead
HEADING_SIGNS = 12  # in a line of a LaTeX heading
ERROR_SUFFIX = " (standard error)"  # of the columns that CSV adds


def number(value: float | None, metric: str) -> str:
    """A value in the digits that its metric deserves: accuracies in percent, perplexities to three figures."""
    if value is None or pd.isna(value):
        return EMPTY
    return _rounded(value, metric, value)


def _rounded(value: float, metric: str, scale: float) -> str:
    """``value`` with the decimals that a number of the size of ``scale`` gets."""
    if metric.startswith(PERCENT):
        return digits(100 * value, 1)
    if metric.startswith(("retention", "entropy")):
        return digits(value, 2)
    if metric in ("kl", "error", "bits_per_byte"):
        return digits(value, 3)
    return digits(value, 0 if scale >= 100 else 1 if scale >= 10 else 2)


@dataclass(frozen=True)
class Cell:
    """One number of a table: the tidy row that it shows, and whether it is the best of its column."""

    row: Row
    best: bool = False

    def __str__(self) -> str:
        """``45.2 [43.9, 46.5]``; without bounds the number alone."""
        row = self.row
        bounds = f" [{number(row.low, row.metric)}, {number(row.high, row.metric)}]" if row.low is not None else ""
        return number(row.value, row.metric) + bounds

    @property
    def value(self) -> float:
        """All digits, in the unit of the table: percent where the table says so."""
        return self.row.value * self._unit

    @property
    def standard_error(self) -> float | None:
        """In the unit of ``value``."""
        return None if self.row.standard_error is None else self.row.standard_error * self._unit

    @property
    def _unit(self) -> int:
        return 100 if self.row.metric.startswith(PERCENT) else 1

    def latex(self) -> str:
        """``45.2 $\\pm$ 0.7``, bold if it is the best."""
        row = self.row
        text = escape_latex(number(row.value, row.metric))
        if self.best:
            text = rf"\textbf{{{text}}}"
        if row.standard_error is None or pd.isna(row.standard_error):
            return text
        return rf"{text} $\pm$ {escape_latex(_rounded(row.standard_error, row.metric, row.value))}"


@dataclass(frozen=True)
class Link:
    """A text that leads somewhere on a page, and is a text elsewhere."""

    text: str
    address: str

    def __str__(self) -> str:
        return self.text


def mark_best(table: pd.DataFrame, out_of_competition: set[str]) -> pd.DataFrame:
    """A copy with the best cell of each column marked; equal ones share the place.

    Args:
        out_of_competition: conditions that are there for comparison only.
    """
    table = table.copy()
    for column in table:
        cells = [cell for cell in table[column] if isinstance(cell, Cell)]
        cells = [cell for cell in cells if cell.row.condition not in out_of_competition]
        metrics = {cell.row.metric for cell in cells}
        if len(cells) < 2 or len(metrics) > 1 or not metrics <= set(LOWER_IS_BETTER):
            continue
        best = (min if LOWER_IS_BETTER[metrics.pop()] else max)(cell.row.value for cell in cells)
        winners = {id(cell) for cell in cells if cell.row.value == best}
        table[column] = [replace(cell, best=True) if id(cell) in winners else cell for cell in table[column]]
    return table


def plain(table: pd.DataFrame) -> pd.DataFrame:
    """Without names on the axes, which writers would print as a row of their own."""
    table.index.name = table.columns.name = None
    return table


def to_csv(table: pd.DataFrame) -> str:
    """Numbers with six digits; each column that has standard errors is followed by one of these."""
    columns: dict[str, list[str]] = {}
    for name in table:
        columns[str(name)] = [_plain_number(cell) for cell in table[name]]
        errors = [cell.standard_error if isinstance(cell, Cell) else None for cell in table[name]]
        if any(error is not None for error in errors):
            columns[f"{name}{ERROR_SUFFIX}"] = ["" if error is None else f"{error:.6g}" for error in errors]
    return pd.DataFrame(columns, index=table.index).to_csv(lineterminator="\n")


def _plain_number(cell: object) -> str:
    return f"{cell.value:.6g}" if isinstance(cell, Cell) else "" if cell == EMPTY else str(cell)


def to_markdown(table: pd.DataFrame) -> str:
    """A pipe table."""
    levels = table.index.nlevels
    lines = [[""] * levels + [str(column) for column in table.columns], ["---"] * (levels + table.shape[1])]
    for name, row in zip(table.index, table.itertuples(index=False), strict=True):
        cells = [f"**{cell}**" if isinstance(cell, Cell) and cell.best else cell for cell in row]
        lines.append([*(name if levels > 1 else [name]), *cells])
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def to_html(table: pd.DataFrame, caption: str) -> str:
    """An HTML table under its caption, in a box that scrolls by itself; header cells say what they head.

    The first of two index levels becomes a row of its own above its group, which leaves a phone's width to the numbers.
    """
    heads = "".join(f'<th scope="col">{escape(str(column))}</th>' for column in table.columns)
    body, group = [], None
    for name, row in zip(table.index, table.itertuples(index=False), strict=True):
        if table.index.nlevels > 1 and name[0] != group:
            group = name[0]
            body.append(f'<tr class="group"><th scope="rowgroup" colspan="{len(row) + 1}">{escape(group)}</th></tr>')
        label = name[-1] if table.index.nlevels > 1 else name
        cells = "".join(f"<td>{_html_cell(cell)}</td>" for cell in row)
        body.append(f'<tr><th scope="row">{_html_label(label)}</th>{cells}</tr>')
    rows = "\n".join(body)
    return (
        f'<p class="caption">{escape(caption)}</p>\n'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<thead><tr><td></td>{heads}</tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


def _html_label(label: object) -> str:
    text = escape(str(label))
    return f'<a href="{escape(label.address)}">{text}</a>' if isinstance(label, Link) else text


def _html_cell(cell: object) -> str:
    """Escaped; an interval goes into an element of its own, which the style sheet puts under the number."""
    value, bracket, rest = escape(str(cell)).partition(" [")
    if isinstance(cell, Cell) and cell.best:
        value = f"<strong>{value}</strong>"
    return f'{value} <span class="interval">[{rest}</span>' if bracket else value


def to_latex(table: pd.DataFrame, caption: str, label: str) -> str:
    """A booktabs table float that a paper can ``\\input`` (its preamble needs ``booktabs`` and ``multirow``)."""
    styler = table.style.format(_latex).format_index(escape_latex).format_index(_stacked, axis="columns")
    return styler.to_latex(
        hrules=True,
        caption=escape_latex(caption.replace(INTERVALS, "with standard errors")),
        label=f"tab:{label}",
        position="t",
        position_float="centering",
        multicol_align="c",
        column_format="l" * table.index.nlevels + "r" * table.shape[1],
    )


def _stacked(heading: object) -> str:
    """A heading in lines of a few words, so that numbers decide how wide their column is."""
    lines = [escape_latex(line) for line in textwrap.wrap(str(heading), HEADING_SIGNS)]
    stacked = r" \\ ".join(lines)
    return rf"\shortstack[r]{{{stacked}}}" if len(lines) > 1 else stacked


def _latex(cell: object) -> str:
    return cell.latex() if isinstance(cell, Cell) else escape_latex(cell)
