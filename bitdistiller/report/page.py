"""Studies -> the report: one HTML page that needs nothing else, one Markdown file, figures and tables beside them.

The page inlines its style sheet and every figure, holds no script and fetches nothing, so it can be mailed, archived
or opened from disk in ten years. Templates in ``reports/templates`` hold the words; every number in them is read from
``results/studies/*.json``, which carry the runs' own records of commit, machine, time and data. Building the report
computes no statistics and trains nothing.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml
from jinja2 import Environment as Templates
from jinja2 import FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bitdistiller.analysis.study import StudyReport, load_study, studies_dir
from bitdistiller.config import Params
from bitdistiller.report import tables
from bitdistiller.report.figures import Drawing, comparison_figures, inline_svg, save, training_curves
from bitdistiller.results import Environment


@dataclass(frozen=True)
class FigureFile:
    """A saved figure: its path from the report, its caption, its SVG as a piece of the page."""

    path: str
    caption: str
    svg: Markup


@dataclass(frozen=True)
class TableFile:
    """A table in both languages of the report."""

    title: str
    markdown: str
    html: Markup


@dataclass(frozen=True)
class Section:
    """One study as the templates see it."""

    report: StudyReport
    measured: list[TableFile]
    figures: list[FigureFile]
    curves: list[FigureFile]
    runs: TableFile
    comparisons: dict[str, TableFile | None]
    origins: list[str]


def read_studies(params: Params, results_dir: Path) -> list[StudyReport]:
    """The computed studies that ``params`` names, in its order.

    Raises:
        UserError: a study has not been computed yet, or its file is foreign.
    """
    return [StudyReport.read(results_dir / "studies" / f"{name}.json") for name in params.studies]


def verdict_lines(params: Params, results_dir: Path) -> list[str]:
    """One line a claim for the terminal: outcome, claim, effect with its 95 % interval."""
    reports = read_studies(params, results_dir)
    claims = [(f"{report.name}/{claim.id}", claim.verdict) for report in reports for claim in report.claims]
    width = max((len(name) for name, _ in claims), default=0)
    return [
        f"{tables.SYMBOLS[found.outcome]} {found.outcome:<12}  {name:<{width}}  {found.description}: {found.text}"
        for name, found in claims
    ]


def build_report(params: Params, results_dir: Path, out_dir: Path) -> Path:
    """Write ``report.html``, ``report.md``, ``figures/`` and ``tables/`` into ``out_dir``; return the page's path.

    Raises:
        UserError: a study named in ``params`` is missing as a file or has not been computed.
    """
    reports = read_studies(params, results_dir)
    sections = [_section(report, params, out_dir) for report in reports]
    _write_table(tables.verdicts(reports), "verdicts", "Verdicts", out_dir)
    folder = Path(params.root) / "reports" / "templates"
    templates = Templates(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=lambda name: name is not None and ".html" in name,
    )
    templates.globals |= {
        "duration": tables.duration,
        "memory": tables.memory,
        "commit": tables.commit,
        "published_text": tables.published_text,
        "published_numbers": tables.published_numbers,
        "published_item": tables.published_item,
        "symbols": tables.SYMBOLS,
        "probability": tables.probability,
    }
    context = {
        "scale": params.scale,
        "comparable": params.scale == "paper",
        "sections": sections,
        "verdicts": tables.to_markdown(tables.verdicts(reports)),
        "counts": _counts(reports),
        "environments": _environments(reports),
        "data": _data(reports),
        "cost": _cost(reports),
        "parameters": yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False, width=100),
        "style": Markup((folder / "report.css").read_text()),
    }
    for name in ("report.html", "report.md"):
        (out_dir / name).write_text(templates.get_template(f"{name}.j2").render(context).rstrip() + "\n")
    return out_dir / "report.html"


def _section(report: StudyReport, params: Params, out_dir: Path) -> Section:
    study = load_study(report.name, studies_dir(params))
    note = "" if params.scale == "paper" else "; not comparable with the papers' absolute numbers"
    measured = [_write_table(tables.by_condition(report), report.name, f"Measured, with 95 % intervals{note}", out_dir)]
    printed = tables.printed_by_condition(report)
    if report.frame()["level"].notna().any() and not printed.empty:
        measured += [
            _write_table(
                table,
                f"{report.name}-{metric}",
                f"{tables.QUANTITIES[metric]}, measured beside published{note}",
                out_dir,
            )
            for metric, table in tables.beside(report).items()
        ]
    elif not printed.empty:
        title = "As the papers print it: other models, other data"
        measured.append(_write_table(printed, f"{report.name}-published", title, out_dir))
    if len(report.chance) > 1:
        title = "Accuracy of every task, %, measured here, with 95 % intervals"
        measured.append(_write_table(tables.by_task(report), f"{report.name}-tasks", title, out_dir))
    report.frame().to_csv(out_dir / "tables" / f"{report.name}.csv", index=False, float_format="%.6g")
    return Section(
        report=report,
        measured=measured,
        figures=_write_figures((study.figures or comparison_figures)(report), report.name, out_dir),
        curves=_write_figures(training_curves(report), report.name, out_dir),
        runs=_write_table(tables.runs(report), f"{report.name}-runs", "Runs behind this study", out_dir),
        comparisons={claim.id: _comparisons(claim) for claim in report.claims},
        origins=sorted({run.origin for run in report.runs}),
    )


def _comparisons(claim) -> TableFile | None:
    table = tables.comparisons(claim)
    return None if table.empty else _table(table, f"Comparisons behind “{claim.id}”; p is two-sided")


def _table(table: pd.DataFrame, title: str) -> TableFile:
    return TableFile(title, tables.to_markdown(table), Markup(tables.to_html(table, title)))


def _write_table(table: pd.DataFrame, name: str, title: str, out_dir: Path) -> TableFile:
    folder = out_dir / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    made = _table(table, title)
    (folder / f"{name}.md").write_text(made.markdown + "\n")
    (folder / f"{name}.tex").write_text(tables.to_latex(table, title, name))
    return made


def _write_figures(drawings: dict[str, Drawing], study: str, out_dir: Path) -> list[FigureFile]:
    files = []
    for name, drawing in drawings.items():
        stem = f"{study}-{name}"
        source = save(drawing, out_dir / "figures" / stem)
        files.append(
            FigureFile(f"figures/{stem}.svg", drawing.caption, Markup(inline_svg(source, stem, drawing.caption)))
        )
    return files


def _counts(reports: Sequence[StudyReport]) -> dict[str, int]:
    outcomes = [claim.verdict.outcome for report in reports for claim in report.claims]
    return {outcome: outcomes.count(outcome) for outcome in tables.SYMBOLS}


def _all_runs(reports: Sequence[StudyReport]) -> dict:
    return {summary.run: summary for report in reports for summary in report.runs}


def _environments(reports: Sequence[StudyReport]) -> list[tuple[Environment, list[str]]]:
    """Every distinct environment (training and scoring apart) and what was done in it."""
    groups: dict[str, tuple[Environment, list[str]]] = {}
    for name, summary in _all_runs(reports).items():
        stages = [("scoring", summary.environment)]
        if summary.training:
            stages.insert(0, ("training", summary.training.environment))
        for stage, environment in stages:
            key = environment.model_dump_json()
            groups.setdefault(key, (environment, []))[1].append(f"{stage} of {name}")
    return list(groups.values())


def _data(reports: Sequence[StudyReport]) -> list[tuple[list[str], list[str]]]:
    """Runs that share their data, and what the data is, as ``key: value`` lines."""
    groups: dict[str, tuple[list[str], list[str]]] = {}
    for name, summary in _all_runs(reports).items():
        key = json.dumps(summary.data, sort_keys=True)
        groups.setdefault(key, ([], list(_flat(summary.data))))[0].append(name)
    return list(groups.values())


def _flat(value, prefix: str = ""):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}{key}.")
    else:
        yield f"{prefix.rstrip('.')}: {', '.join(map(str, value)) if isinstance(value, list) else value}"


def _cost(reports: Sequence[StudyReport]) -> dict[str, int | float]:
    """Wall time of all distinct runs, training and scoring added up, and the largest peak of memory."""
    runs = _all_runs(reports).values()
    costs = [run.scoring for run in runs] + [run.training.cost for run in runs if run.training]
    return {
        "runs": len(runs),
        "seconds": sum(cost.seconds for cost in costs),
        "peak_bytes": max((cost.peak_bytes for cost in costs), default=0),
    }
