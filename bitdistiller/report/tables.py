"""Tables for people: from tidy rows to Markdown, HTML and LaTeX (booktabs).

One frame of strings serves all three. Numbers are rounded here and nowhere else; the tidy rows keep every digit. In a
table that puts measured beside published, each model has columns of its own under a heading that says which of the two
it is, so that a number cannot be read as the other kind.
"""

from collections.abc import Sequence
from html import escape

import pandas as pd

from bitdistiller.analysis.published import paper_of
from bitdistiller.analysis.rows import MEAN
from bitdistiller.analysis.study import StudyReport
from bitdistiller.analysis.verdict import JudgedClaim, PublishedNumber, digits, format_effect

EMPTY = "–"
QUANTITIES = {
    "perplexity": "Perplexity",
    "acc": "Mean accuracy, %",
    "retention": "Share of full precision's accuracy kept",
    "retention_above_chance": "Share kept, chance subtracted",
    "kl": "KL to the original, nats a token",
    "agreement": "Top-1 agreement, %",
    "flips": "Flips, %",
    "zeros": "Zeros, %",
    "entropy": "Entropy of the codes, bits",
    "error": "Weight error",
    "tokens": "Training tokens",
    "seconds": "Training, s",
    "peak_gib": "Memory, GiB",
    "joules": "Energy, J",
}
BESIDE = ("perplexity", "acc", "retention", "retention_above_chance")  # what papers print against bits
_PERCENT = ("acc", "agreement", "flips", "zeros")
SYMBOLS = {"supported": "✓", "contradicted": "✗", "undecided": "?"}


def number(value: float | None, metric: str) -> str:
    """A value in the digits that its metric deserves: accuracies in percent, perplexities to three figures."""
    if value is None or pd.isna(value):
        return EMPTY
    if metric.startswith(_PERCENT):
        return digits(100 * value, 1)
    if metric.startswith(("retention", "entropy")):
        return digits(value, 2)
    if metric in ("kl", "error"):
        return digits(value, 3)
    return digits(value, 0 if value >= 100 else 1 if value >= 10 else 2)


def with_interval(row: pd.Series) -> str:
    """``45.2 [43.9, 46.5]``; without bounds the number alone."""
    centre = number(row["value"], row["metric"])
    if pd.isna(row["low"]):
        return centre
    return f"{centre} [{number(row['low'], row['metric'])}, {number(row['high'], row['metric'])}]"


def beside(report: StudyReport) -> dict[str, pd.DataFrame]:
    """Measured beside published, a table per metric of ``BESIDE``: a row per model, a column per condition.

    Measured cells carry their 95 % intervals; the papers print none for averages.
    """
    rows = report.frame()
    rows = rows[rows["kind"].isin(["mean", "published"])]
    rows = rows[(rows["task"] == MEAN) | (rows["metric"] == "perplexity")]
    conditions = list(dict.fromkeys(rows["condition"]))
    there = [metric for metric in BESIDE if (rows["metric"] == metric).any()]
    return {metric: _beside(rows[rows["metric"] == metric], conditions) for metric in there}


def _beside(rows: pd.DataFrame, conditions: list[str]) -> pd.DataFrame:
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for _, row in rows.iterrows():
        measured = row["kind"] == "mean"
        name = row["model"] if measured else f"{row['model']} ({paper_of(row['source'])})"
        line = lines.setdefault(("measured here" if measured else "published", name), {})
        line[row["condition"]] = with_interval(row)
    table = pd.DataFrame([[line.get(c, EMPTY) for c in conditions] for line in lines.values()], columns=conditions)
    table.index = pd.MultiIndex.from_tuples(lines)
    return table


def by_condition(report: StudyReport) -> pd.DataFrame:
    """What was measured of every condition: a row each, a column per metric of ``QUANTITIES``."""
    rows = report.frame()
    return _by_condition(rows[rows["kind"] == "mean"], "condition")


def printed_by_condition(report: StudyReport) -> pd.DataFrame:
    """What the papers print for the conditions of a study: a row a model and condition; empty if they print nothing."""
    rows = report.frame()
    rows = rows[rows["kind"] == "published"]
    names = [f"{row.model} ({paper_of(row.source)}), {row.condition}" for row in rows.itertuples()]
    return _by_condition(rows.assign(name=names), "name")


def _by_condition(rows: pd.DataFrame, key: str) -> pd.DataFrame:
    rows = rows[(rows["metric"] != "acc") | (rows["task"] == MEAN)]
    columns = [metric for metric in rows["metric"].unique() if metric in QUANTITIES]
    lines: dict[str, dict[str, str]] = {}
    for _, row in rows.iterrows():
        lines.setdefault(row[key], {})[row["metric"]] = with_interval(row)
    cells = [[line.get(metric, EMPTY) for metric in columns] for line in lines.values()]
    return pd.DataFrame(cells, index=list(lines), columns=[QUANTITIES[metric] for metric in columns])


def by_task(report: StudyReport) -> pd.DataFrame:
    """Measured accuracy of every task: a row per condition, the chance level first."""
    rows = report.frame()
    rows = rows[(rows["kind"] == "mean") & (rows["metric"] == "acc") & (rows["task"] != MEAN)]
    cells = rows.assign(cell=[with_interval(row) for _, row in rows.iterrows()])
    table = cells.pivot(index="condition", columns="task", values="cell")
    table = table.reindex(index=list(dict.fromkeys(rows["condition"])), columns=list(report.chance))
    chance = [number(value, "acc") for value in report.chance.values()]
    return pd.concat([pd.DataFrame([chance], index=["chance"], columns=table.columns), plain(table).fillna(EMPTY)])


def plain(table: pd.DataFrame) -> pd.DataFrame:
    """Without names on the axes, which writers would print as a row of their own."""
    table.index.name = table.columns.name = None
    return table


def verdicts(reports: Sequence[StudyReport]) -> pd.DataFrame:
    """One row a claim: outcome, sentence, effect with interval, and the papers' numbers of the same kind."""
    return pd.DataFrame(
        [
            {
                "verdict": f"{SYMBOLS[claim.verdict.outcome]} {claim.verdict.outcome}",
                "claim": claim.sentence,
                "measured effect [95 % interval]": f"{claim.verdict.description}: {claim.verdict.text}",
                "published": published_text(claim),
            }
            for report in reports
            for claim in report.claims
        ],
        index=[f"{report.name}/{claim.id}" for report in reports for claim in report.claims],
    )


def published_text(claim: JudgedClaim) -> str:
    """``accuracy at 1 bit minus chance: TinyLlama-1.1B (follow-up) 0.6 points, ...``"""
    numbers = published_numbers(claim)
    return f"{numbers[0].description}: {', '.join(map(published_item, numbers))}" if numbers else EMPTY


def published_numbers(claim: JudgedClaim) -> list[PublishedNumber]:
    """The papers' numbers that are in the unit of the measured effect, and so can stand beside it."""
    return [number for number in claim.published if number.unit == claim.verdict.unit]


def published_item(number: PublishedNumber) -> str:
    """``TinyLlama-1.1B (follow-up) 0.6 points``."""
    return f"{number.model} ({paper_of(number.file)}) {format_effect(number.value, number.unit)}"


def comparisons(claim: JudgedClaim) -> pd.DataFrame:
    """The comparisons behind a verdict; empty when the verdict is one comparison itself."""
    parts = claim.verdict.parts
    return pd.DataFrame(
        [[p.text, probability(p.p), p.basis, p.outcome or "beside the claim", p.needs or EMPTY] for p in parts],
        columns=["effect [95 % interval]", "p", "interval over", "outcome", "would take"],
        index=[p.description for p in parts],
    )


def probability(p: float | None) -> str:
    """A p-value in three decimals."""
    return EMPTY if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def runs(report: StudyReport) -> pd.DataFrame:
    """One row a run: what it is, its size, and what training and scoring cost."""
    table = []
    for summary in report.runs:
        training = summary.training
        table.append(
            {
                "run": summary.run,
                "condition": summary.condition,
                "bits a weight": f"{summary.bits_per_weight:.2f}",
                "quantized": f"{summary.quantized_parameters / summary.parameters:.0%}",
                "steps": f"{training.steps:,}" if training else EMPTY,
                "tokens": f"{training.tokens:,}" if training else EMPTY,
                "gamma": f"{training.gamma:.3f}" if training and training.gamma is not None else EMPTY,
                "last loss": f"{training.final_loss:.3f}" if training else EMPTY,
                "training": duration(training.cost.seconds) if training else EMPTY,
                "scoring": duration(summary.scoring.seconds),
                "peak memory": memory(
                    max(c.peak_bytes for c in ([training.cost] if training else []) + [summary.scoring])
                ),
                "commit": commit(summary.environment),
            }
        )
    return plain(pd.DataFrame(table).set_index("run"))


def commit(environment) -> str:
    """Abbreviated commit; ``+`` marks a tree with uncommitted changes."""
    return environment.commit[:10] + ("+" if environment.dirty else "")


def duration(seconds: float) -> str:
    """``41 s``, ``3 min 5 s`` or ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def memory(count: int) -> str:
    """Bytes as MiB or GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def to_markdown(table: pd.DataFrame) -> str:
    """A pipe table."""
    levels = table.index.nlevels
    lines = [[""] * levels + [str(column) for column in table.columns], ["---"] * (levels + table.shape[1])]
    for name, row in zip(table.index, table.itertuples(index=False), strict=True):
        lines.append([*(name if levels > 1 else [name]), *row])
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
        body.append(f'<tr><th scope="row">{escape(str(label))}</th>{cells}</tr>')
    rows = "\n".join(body)
    return (
        f'<p class="caption">{escape(caption)}</p>\n'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<thead><tr><td></td>{heads}</tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


def _html_cell(text: object) -> str:
    """Escaped; an interval goes into an element of its own, which the style sheet puts under the number."""
    value, bracket, rest = escape(str(text)).partition(" [")
    return f'{value} <span class="interval">[{rest}</span>' if bracket else value


def to_latex(table: pd.DataFrame, caption: str, label: str) -> str:
    """A booktabs table float that a paper can ``\\input`` (its preamble needs ``booktabs`` and ``multirow``)."""
    styler = table.style.format(_latex).format_index(_latex).format_index(_latex, axis="columns")
    return styler.to_latex(
        hrules=True,
        caption=_latex(caption),
        label=f"tab:{label}",
        position="t",
        position_float="centering",
        multicol_align="c",
        column_format="l" * table.index.nlevels + "r" * table.shape[1],
    )


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "−": "$-$",
    "×": r"$\times$",
    "✓": r"$\checkmark$",
    "✗": r"$\times$",
}


def _latex(text: object) -> str:
    """Text as LaTeX, the few signs used here included."""
    return "".join(_LATEX.get(sign, sign) for sign in str(text))
