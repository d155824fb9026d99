"""Studies -> the report: a site that needs no network, and one Markdown file.

``index.html`` holds the verdicts, claims against scales; every study has a page, every run has one, and the audit of
the published tables and the making of it all have theirs. Pages share a style sheet, hold no script and fetch nothing,
so the folder can be mailed, archived or opened from disk in ten years; figures are part of their page, so that they
follow the reader's light or dark theme. Templates in ``reports/templates`` hold the words; every number in them is read
from what studies found (``results/studies/*.json``), which carries the runs' own records of commit, machine, time and
data. Building the report computes no statistics and trains nothing.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jinja2 import Environment as Templates
from jinja2 import FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bitdistiller.analysis.audit import audit
from bitdistiller.analysis.audit.record import GRADES
from bitdistiller.analysis.audit.show import alarm_sentence
from bitdistiller.analysis.record import Row, RunSummary, StudyReport
from bitdistiller.analysis.study import load_study, published_dir, studies_dir
from bitdistiller.analysis.verdict import JudgedClaim
from bitdistiller.assets import sha256_file
from bitdistiller.config import Params
from bitdistiller.report import cells, tables
from bitdistiller.report.curves import run_curves, training_curves
from bitdistiller.report.drawing import Drawing, inline_svg, save, to_svg
from bitdistiller.report.figures import comparison_figures
from bitdistiller.report.scales import Scale, all_scales, origins
from bitdistiller.report.tidy import tidy, write_tidy
from bitdistiller.report.variables import variables
from bitdistiller.results import Environment


@dataclass(frozen=True)
class FigureFile:
    """A figure: its path from the report, its caption, its SVG as a piece of a page."""

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
    """One study at one scale, as the templates see it."""

    scale: Scale
    report: StudyReport
    measured: list[TableFile]
    figures: list[FigureFile]
    curves: list[FigureFile]
    runs: TableFile
    comparisons: dict[str, TableFile | None]
    origins: list[str]


@dataclass(frozen=True)
class StudyPage:
    """One study at every scale at which it was computed; ``claims`` are those of the scales together."""

    name: str
    question: str
    source: str
    sections: list[Section]

    @property
    def claims(self) -> dict[str, dict[str, JudgedClaim]]:
        """By id: the judged claim of every scale by the scale's name."""
        found: dict[str, dict[str, JudgedClaim]] = {}
        for section in self.sections:
            for claim in section.report.claims:
                found.setdefault(claim.id, {})[section.scale.name] = claim
        return found


@dataclass(frozen=True)
class RunPage:
    """One run at one scale, and the studies that it takes part in."""

    scale: Scale
    summary: RunSummary
    studies: list[str]
    figures: list[FigureFile]

    @property
    def rows(self) -> list[Row]:
        """Its scores."""
        rows = self.scale.report(self.studies[0]).rows
        return [row for row in rows if row.run == self.summary.run]

    @property
    def stages(self) -> list[str]:
        """The stages that make it."""
        return self.scale.stages(self.summary.run)

    @property
    def file(self) -> str:
        """Its path from the report."""
        return f"runs/{self.scale.slug}-{self.summary.run}.html"


def verdict_lines(scale: Scale) -> list[str]:
    """One line a claim for the terminal: outcome, claim, effect with its 95 % interval."""
    claims = [(f"{report.name}/{claim.id}", claim.verdict) for report in scale.reports for claim in report.claims]
    width = max((len(name) for name, _ in claims), default=0)
    return [
        f"{tables.SYMBOLS[found.outcome]} {found.outcome:<12}  {name:<{width}}  {found.description}: {found.text}"
        for name, found in claims
    ]


def build_report(params: Params, params_file: Path, results_dir: Path, out_dir: Path) -> Path:
    """Write the site, ``report.md``, ``figures/`` and ``tables/`` into ``out_dir``; return the path of its first page.

    Raises:
        UserError: a study named in ``params`` is missing as a file or has not been computed.
    """
    scales = all_scales(params, params_file, results_dir)
    for folder in ("figures", "tables", "studies", "runs"):
        shutil.rmtree(out_dir / folder, ignore_errors=True)
    studies = _study_pages(scales, params, out_dir)
    by_scale = {scale.name: scale.reports for scale in scales}
    matrix = tables.verdict_matrix(by_scale)
    said = [f"{scale.name} scale: {'; '.join(scale.origins)}" for scale in scales]
    _write_table(matrix, "verdicts", f"Verdicts by scale{tables.NOT_COMPARABLE}", said, out_dir)
    templates = _templates(Path(params.root) / "reports" / "templates")
    templates.globals |= {"scales": scales, "studies": studies}

    def write(name: str, template: str, **context) -> None:
        path = out_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        context |= {"top": "../" * (len(Path(name).parts) - 1)}
        path.write_text(templates.get_template(f"{template}.j2").render(context).rstrip() + "\n")

    write("index.html", "index.html", costs={scale.name: _cost(scale) for scale in scales}, counts=_counts(scales))
    write("made.html", "made.html", environments=_environments(scales), data=_data(scales))
    audited = audit([published_dir(params)])
    alarm = alarm_sentence(audited.calibration) if audited.calibration else ""
    write("audit.html", "audit.html", audit=audited, grades=GRADES, alarm=alarm)
    for study in studies:
        write(f"studies/{study.name}.html", "study.html", study=study)
    for run in _run_pages(scales):
        write(run.file, "run.html", run=run, summary=run.summary)
    own = [study for study in studies if study.sections[0].scale is scales[0]]
    write(
        "report.md",
        "report.md",
        scale=scales[0],
        sections=[study.sections[0] for study in own],
        verdicts=cells.to_markdown(tables.verdicts(scales[0].reports)),
        cost=_cost(scales[0]),
        environments=_environments(scales[:1]),
        data=_data(scales[:1]),
        parameters=scales[0].parameters,
    )
    write_tidy(tidy(by_scale), out_dir)
    (out_dir / "variables.tex").write_text(variables(by_scale))
    shutil.copy(Path(params.root) / "reports" / "templates" / "report.css", out_dir / "report.css")
    return out_dir / "index.html"


def _templates(folder: Path) -> Templates:
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
        "quantities": cells.QUANTITIES,
        "number": cells.number,
    }
    templates.filters["flat"] = lambda value: list(_flat(value))
    return templates


def _study_pages(scales: Sequence[Scale], params: Params, out_dir: Path) -> list[StudyPage]:
    """Studies in the order of the first scale that has them."""
    pages = []
    for name in dict.fromkeys(report.name for scale in scales for report in scale.reports):
        there = [(scale, report) for scale in scales if (report := scale.report(name))]
        sections = [_section(scale, report, params, out_dir, own=scale is scales[0]) for scale, report in there]
        first = there[0][1]
        pages.append(StudyPage(name, first.question, first.source, sections))
    return pages


def _section(scale: Scale, report: StudyReport, params: Params, out_dir: Path, own: bool) -> Section:
    """One study at one scale; of another scale than the own one, files lie in a folder of its name."""
    study, within = load_study(report.name, studies_dir(params)), "" if own else f"{scale.slug}/"
    note = "" if scale.comparable else tables.NOT_COMPARABLE
    said = origins([report])
    measured = [
        _write_table(table.frame, within + name, table.title, said, out_dir)
        for name, table in tables.study_tables(report).items()
    ]
    report.frame().to_csv(out_dir / "tables" / f"{within}{report.name}-rows.csv", index=False, float_format="%.6g")
    prefix, origin = within + report.name, _figure_origin(scale, report)
    comparisons = {
        claim.id: _table(table, f"Comparisons behind “{claim.id}”; {tables.P_VALUES}{note}")
        for claim in report.claims
        if not (table := tables.comparisons(claim)).empty
    }
    runs = tables.runs(report, lambda run: f"../runs/{scale.slug}-{run}.html")
    return Section(
        scale=scale,
        report=report,
        measured=measured,
        figures=_write_figures((study.figures or comparison_figures)(report), prefix, origin, out_dir),
        curves=_write_figures(training_curves(report, scale.params), prefix, origin, out_dir),
        runs=_write_table(runs, f"{within}{report.name}-runs", f"Runs behind this study{note}", said, out_dir),
        comparisons=comparisons,
        origins=sorted({run.origin for run in report.runs}),
    )


def _table(table: pd.DataFrame, title: str) -> TableFile:
    return TableFile(title, cells.to_markdown(table), Markup(cells.to_html(table, title)))


def _write_table(table: pd.DataFrame, name: str, title: str, origins: Sequence[str], out_dir: Path) -> TableFile:
    """Write a table under its title; off the page, where nothing else says it, also what the weights are."""
    stem = out_dir / "tables" / name
    stem.parent.mkdir(parents=True, exist_ok=True)
    made, caption = _table(table, title), ". ".join([title, *origins]) + "."
    stem.with_suffix(".md").write_text(f"{caption}\n\n{made.markdown}\n")
    stem.with_suffix(".csv").write_text(cells.to_csv(table))
    stem.with_suffix(".tex").write_text(cells.to_latex(table, caption, name.replace("/", "-")))
    return made


def _write_figures(drawings: dict[str, Drawing], prefix: str, origin: str, out_dir: Path) -> list[FigureFile]:
    files = []
    for name, drawing in drawings.items():
        stem = f"{prefix}-{name}"
        source = save(drawing, out_dir / "figures" / stem, origin)
        svg = inline_svg(source, stem.replace("/", "-"), drawing.caption)
        files.append(FigureFile(f"figures/{stem}.svg", drawing.caption, Markup(svg)))
    return files


def _figure_origin(scale: Scale, report: StudyReport) -> str:
    """What a figure file says of its numbers: the record that they were read from, and where that comes from."""
    records = [(run.environment, run.scoring) for run in report.runs]
    records += [(run.training.environment, run.training.cost) for run in report.runs if run.training]
    commits: dict[str, list[str]] = {}
    for run in report.runs:
        commits.setdefault(tables.commit(run.environment), []).append(run.run)
    about = {
        "study": report.name,
        "scale": scale.name,
        "record_sha256": sha256_file(scale.path / f"{report.name}.json"),
        "parameters_sha256": hashlib.sha256(scale.parameters.encode()).hexdigest(),
        "data_sha256": sorted({data["sha256"] for run in report.runs for data in run.data.values()}),
        "runs_by_commit": commits,
        "machines": sorted({environment.machine for environment, _ in records}),
        "versions": [json.loads(text) for text in sorted({json.dumps(known.versions) for known, _ in records})],
        "seconds": round(sum(cost.seconds for _, cost in records), 2),
        "peak_bytes": max(cost.peak_bytes for _, cost in records),
    }
    return json.dumps(about, sort_keys=True)


def _run_pages(scales: Sequence[Scale]) -> list[RunPage]:
    pages = []
    for scale in scales:
        users: dict[str, list[str]] = {}
        for report in scale.reports:
            for run in report.runs:
                users.setdefault(run.run, []).append(report.name)
        for name, summary in scale.runs().items():
            drawings = run_curves(summary.training, scale.params) if summary.training else {}
            figures = [
                FigureFile("", drawing.caption, Markup(inline_svg(to_svg(drawing, ""), kind, drawing.caption)))
                for kind, drawing in drawings.items()
            ]
            pages.append(RunPage(scale, summary, list(dict.fromkeys(users[name])), figures))
    return pages


def _counts(scales: Sequence[Scale]) -> dict[str, dict[str, int]]:
    counts = {}
    for scale in scales:
        outcomes = [claim.verdict.outcome for report in scale.reports for claim in report.claims]
        counts[scale.name] = {outcome: outcomes.count(outcome) for outcome in tables.SYMBOLS}
    return counts


def _environments(scales: Sequence[Scale]) -> list[tuple[Environment, list[str]]]:
    """Every distinct environment (training and scoring apart) and what was done in it."""
    groups: dict[str, tuple[Environment, list[str]]] = {}
    for scale in scales:
        for name, summary in scale.runs().items():
            stages = [("scoring", summary.environment)]
            if summary.training:
                stages.insert(0, ("training", summary.training.environment))
            for stage, environment in stages:
                key = environment.model_dump_json()
                groups.setdefault(key, (environment, []))[1].append(f"{stage} of {name} ({scale.name})")
    return list(groups.values())


def _data(scales: Sequence[Scale]) -> list[tuple[list[str], list[str]]]:
    """Runs that share their data, and what the data is, as ``key: value`` lines."""
    groups: dict[str, tuple[list[str], list[str]]] = {}
    for scale in scales:
        for name, summary in scale.runs().items():
            key = json.dumps(summary.data, sort_keys=True)
            groups.setdefault(key, ([], list(_flat(summary.data))))[0].append(f"{name} ({scale.name})")
    return list(groups.values())


def _flat(value, prefix: str = ""):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}{key}.")
    else:
        yield f"{prefix.rstrip('.')}: {', '.join(map(str, value)) if isinstance(value, list) else value}"


def _cost(scale: Scale) -> dict[str, int | float]:
    """Wall time of all distinct runs, training and scoring added up, and the largest peak of memory."""
    runs = scale.runs().values()
    costs = [run.scoring for run in runs] + [run.training.cost for run in runs if run.training]
    return {
        "runs": len(runs),
        "seconds": sum(cost.seconds for cost in costs),
        "peak_bytes": max((cost.peak_bytes for cost in costs), default=0),
    }
