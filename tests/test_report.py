"""The report: a site that needs no network, well-formed, the same bytes every time, and every number from a file."""

import hashlib
import importlib.util
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pandas as pd
import pytest
import yaml

from bitdistiller.analysis.record import StudyReport
from bitdistiller.analysis.study import run_study
from bitdistiller.assets import sha256_file
from bitdistiller.config import load_params
from bitdistiller.errors import UserError
from bitdistiller.report import all_scales, build_report, cells, own_scale, publish, tables, verdict_lines
from bitdistiller.report.curves import run_curves, training_curves
from bitdistiller.report.drawing import INK, LOOK, SERIES, Drawing, axes, inline_svg, save, series_style
from bitdistiller.report.figures import ALONE, comparison_figures, size_panel
from bitdistiller.report.scales import origins
from bitdistiller.report.trace import trace
from bitdistiller.report.weights import layers_panel, weight_distribution
from bitdistiller.results import Histogram, LayerSummary, WeightSummary
from tests.synthetic import ROOT, Truth, bit_scaling_runs, make_params

TASKS = {"piqa": 0.5, "arc_easy": 0.25}


def written(params, folder):
    """The parameter file of a synthetic scale."""
    file = folder / "params.yaml"
    file.write_text(yaml.safe_dump(params.model_dump(mode="json")))
    return file


def build(params, folder, out):
    return build_report(params, written(params, folder), folder / "results", out)


def project(root: Path) -> Path:
    """A folder with this repository's studies, whose only scale is its own."""
    for name in ("studies", "reports/templates", "reports/published"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).symlink_to(ROOT / name)
    return root


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The report of a project with two scales: micro's own, and a published one. It is drawn when the runs are gone."""
    root = project(tmp_path_factory.mktemp("project"))
    truths = {"full": Truth(0.6, 30.0), 1: Truth(0.375, 1500.0)}
    for folder, scale, seeds in ((root, "micro", 2), (root / "profiles" / "large", "large, 1 seed", 1)):
        section = bit_scaling_runs(folder / "results", questions=200, seeds=seeds, chance=TASKS, truths=truths)
        params = make_params(section, scale=scale, root=root)
        run_study("bit_scaling", params, folder / "results")
        shutil.rmtree(folder / "results" / "runs")
        written(params, folder)
    publish(folder / "params.yaml", folder / "results")
    params = load_params(root / "params.yaml")
    build(params, root, root / "reports")
    return root, params, StudyReport.read(root / "results" / "studies" / "bit_scaling.json")


class Page(HTMLParser):
    VOID = {"meta", "br", "link", "img"}

    def __init__(self, source: str):
        super().__init__()
        self.tags, self.ids, self.references, self.text, self.open = [], [], [], [], []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href"):
                self.references.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def pages(out):
    return {path.relative_to(out): Page(path.read_text()) for path in sorted(out.rglob("*.html"))}


def test_pages_are_well_formed_and_need_no_network(built):
    out = built[0] / "reports"
    found = pages(out)
    assert {str(path.parent) for path in found} == {".", "studies", "runs"} and len(found) == 4 + len(built[2].runs) + 5
    for path, page in found.items():
        source = (out / path).read_text()
        assert page.open == [] and "script" not in page.tags
        assert len(page.ids) == len(set(page.ids))
        namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
        assert set(re.findall(r"https?://[^\"'\s<>)]+", source)) <= namespaces
        assert "@import" not in source and not re.findall(r"url\((?!#)", source)
        for piece in re.findall(r"<svg.*?</svg>", source, flags=re.DOTALL):
            ElementTree.fromstring(piece)


def test_every_link_leads_somewhere(built):
    out = built[0] / "reports"
    found = pages(out)
    links = [(path, ref) for path, page in found.items() for ref in page.references if not ref.startswith("data:")]
    assert len(links) > 200
    for path, ref in links:
        file, _, place = ref.partition("#")
        target = (out / path.parent / file).resolve() if file else out / path
        assert target.is_file(), (path, ref)
        if place:
            assert place in found[target.relative_to(out.resolve()) if file else path].ids, (path, ref)


def text_of(path):
    return " ".join(Page(path.read_text()).text)


def test_every_verdict_of_every_scale_is_on_the_first_page(built):
    text = text_of(built[0] / "reports" / "index.html")
    large = StudyReport.read(built[0] / "reports" / "scales" / "large-1-seed" / "studies" / "bit_scaling.json")
    for report in (built[2], large):
        for claim in report.claims:
            assert claim.sentence in text and claim.verdict.text in text and claim.verdict.description in text
    assert "large, 1 seed scale" in text and "micro scale" in text


def test_the_first_page_says_what_its_numbers_are_about_and_what_they_could_show(built):
    text = text_of(built[0] / "reports" / "index.html")
    large = StudyReport.read(built[0] / "reports" / "scales" / "large-1-seed" / "studies" / "bit_scaling.json")
    origin = built[2].runs[0].origin
    assert text.count(origin) == 2  # once a scale
    assert ", 2 seeds a student" in text and ", one seed a student" in text
    for report, scale in ((built[2], "micro"), (large, "large, 1 seed")):
        assert f"{report.detectable.text} ({scale} scale)" in text
        for claim in report.claims:
            assert f"{claim.verdict.description}, over {claim.verdict.basis}" in text
    assert {claim.verdict.basis for claim in built[2].claims} & {"items and 2 seeds", "documents and 2 seeds"}
    assert {claim.verdict.basis for claim in large.claims} & {"items only (one seed)", "documents only (one seed)"}


def test_exported_tables_say_what_the_weights_are(built):
    origin, files = built[2].runs[0].origin, built[0] / "reports" / "tables"
    found = [*files.rglob("*.tex"), *files.rglob("*.md")]
    assert {path.parent.name for path in found} == {"tables", "large-1-seed"} and len(found) > 20
    for path in found:
        assert origin in path.read_text(), path


def test_models_of_one_origin_share_its_sentence(built):
    def of(model, origin):
        return built[2].runs[0].model_copy(update={"run": model, "model": model, "origin": origin})

    runs = [
        of("b", "b, made here"),
        of("a", "a, made here"),
        of("c", "read from a 4-bit file"),
        of("d", "trained from a"),
    ]
    report = built[2].model_copy(update={"runs": runs, "params": {"full": {"full": ["a", "b"], "other": ["c"]}}})
    assert origins([report]) == ["a, b, made here", "read from a 4-bit file"]


def test_the_register_says_what_the_weights_of_every_scale_are():
    specification = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "pages.py")
    pages = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(pages)
    register = pages.claims(ROOT)
    for scale, folder in pages.scales(ROOT).items():
        for origin in origins([report for report in pages.reports(folder).values() if report]):
            assert origin in next(line for line in register.splitlines() if line.startswith(f"- **{scale}**"))


def test_a_study_page_holds_explanations_and_links_its_runs(built):
    text = text_of(built[0] / "reports" / "studies" / "bit_scaling.html")
    markdown = (built[0] / "reports" / "report.md").read_text()
    for claim in built[2].claims:
        for piece in (claim.sentence, claim.verdict.text, claim.verdict.explanation, claim.verdict.outcome):
            assert piece in text and piece in markdown
    page = Page((built[0] / "reports" / "studies" / "bit_scaling.html").read_text())
    for run in built[2].runs:
        assert run.run in text and run.run in markdown
        assert f"../runs/micro-{run.run}.html" in page.references


def test_a_run_page_says_how_it_was_made(built):
    run = next(run for run in built[2].runs if run.training)
    text = text_of(built[0] / "reports" / "runs" / f"micro-{run.run}.html")
    assert run.environment.commit in text and run.environment.machine in text and run.origin in text
    assert f"bitdistiller reproduce train@{run.run} evaluate@{run.run}" in text
    assert all(data["sha256"] in text for data in run.data.values())
    other = text_of(built[0] / "reports" / "runs" / f"large-1-seed-{run.run}.html")
    assert "cd profiles/large && bitdistiller reproduce" in other


def test_the_origin_of_the_weights_stands_where_their_numbers_are(built):
    origin = built[2].runs[0].origin
    source = (built[0] / "reports" / "report.md").read_text()
    place = source.index(origin)
    heading = source.rindex("Measured beside published", 0, place)
    assert heading < place < source.index("TinyLlama-1.1B (follow-up)", place)
    source = (built[0] / "reports" / "studies" / "bit_scaling.html").read_text()
    for slug in ("micro", "large-1-seed"):
        place = source.index(origin, source.index(f'id="{slug}-title"'))
        assert place < source.index("TinyLlama-1.1B (follow-up)", place)
    assert origin in (built[0] / "reports" / "runs" / f"micro-{built[2].runs[0].run}.html").read_text()


def test_markdown_points_at_figures_that_exist(built):
    out = built[0] / "reports"
    paths = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (out / "report.md").read_text())
    assert len(paths) == 9
    for path in paths:
        ElementTree.parse(out / path)
        assert (out / path).with_suffix(".png").stat().st_size > 5000
        assert b"/FontFile2" in (out / path).with_suffix(".pdf").read_bytes()


def test_building_twice_gives_the_same_bytes(built):
    folder, params, _ = built
    build(params, folder, folder / "again")
    files = sorted(p.relative_to(folder / "again") for p in (folder / "again").rglob("*") if p.is_file())
    assert len(files) > 20
    for name in files:
        assert (folder / "again" / name).read_bytes() == (folder / "reports" / name).read_bytes(), name


def test_every_table_below_paper_scale_says_so(built, tmp_path):
    folder, params, _ = built
    note = "not comparable with the papers' absolute numbers"
    small = (folder / "reports" / "report.md").read_text()
    titles = re.findall(r"^\*\*([^✓✗?].*)\*\*$", small, flags=re.MULTILINE)
    assert len(titles) > 5 and all(note in title for title in titles)
    measured = {path: page for path, page in pages(folder / "reports").items() if path.name != "audit.html"}
    for path, page in measured.items():
        source = (folder / "reports" / path).read_text()
        captions = re.findall(r'<p class="caption"[^>]*>(.*?)</p>', source, flags=re.DOTALL)
        assert len(captions) == page.tags.count("table") - source.count('class="verdicts judged"')
        assert all("not comparable" in caption for caption in captions), path
    alone = params.model_copy(update={"scale": "paper", "root": str(tmp_path / "none")})
    for name in ("studies", "reports/templates", "reports/published"):
        (tmp_path / "none" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "none" / name).symlink_to(ROOT / name)
    built[2].model_copy(update={"scale": "paper"}).write(tmp_path / "results" / "studies" / "bit_scaling.json")
    build(alone, tmp_path, tmp_path)
    assert "not comparable" not in (tmp_path / "report.md").read_text()
    for path in pages(tmp_path):
        assert "not comparable" not in (tmp_path / path).read_text(), path


def test_measured_and_published_never_share_a_row(built):
    for table in tables.beside(built[2]).values():
        origins = {model: origin for origin, model in table.index}
        assert len(origins) == len(table)
        assert list(origins.values()) == ["measured here"] + ["published"] * 5
        assert table.loc["measured here"].map(lambda cell: "[" in str(cell)).all(axis=None)
        assert not table.loc["published"].map(lambda cell: "[" in str(cell)).any(axis=None)


def test_task_table_starts_with_chance(built):
    table = tables.by_task(built[2])
    assert table.index[0] == "chance" and table.iloc[0].tolist() == ["50.0", "25.0"]
    assert list(table.columns) == list(TASKS)


def test_verdict_lines_are_one_a_claim(built):
    folder, params, report = built
    lines = verdict_lines(own_scale(params, folder / "params.yaml", folder / "results"))
    assert len(lines) == len(report.claims)
    for line, claim in zip(lines, report.claims, strict=True):
        assert claim.verdict.outcome in line and f"bit_scaling/{claim.id}" in line and line.endswith(claim.verdict.text)


def chain(built, cell):
    folder, params, _ = built
    scales = all_scales(params, folder / "params.yaml", folder / "results")
    return "\n".join(trace(cell, scales, ROOT / "reports" / "published"))


def test_a_measured_cell_is_traced_to_its_runs(built):
    runs = [run.run for run in built[2].runs if run.condition == "2 bits"]
    text = chain(built, "reports/tables/bit_scaling.csv:2 bits,Perplexity")
    row = next(
        row for row in built[2].rows if (row.kind, row.condition) == ("mean", "2 bits") and row.metric == "perplexity"
    )
    assert f"{row.value:.8g}" in text and sha256_file(built[0] / "results" / "studies" / "bit_scaling.json") in text
    for run in runs:
        assert f"run       {run}:" in text and f"bitdistiller reproduce train@{run} evaluate@{run}" in text
    assert text.count("run       ") == len(runs) and built[2].runs[0].environment.commit in text


def test_the_lock_of_a_scale_is_the_one_in_its_own_folder(built, monkeypatch):
    """Also when every path is relative, as in a scale's own parameter file."""
    folder, params, report = built
    monkeypatch.chdir(folder)
    run = next(run for run in report.runs if run.condition == "2 bits").run
    scales = all_scales(params.model_copy(update={"root": "."}), Path("params.yaml"), Path("results"))
    for place, address in (
        (folder, "tables/bit_scaling.csv:2 bits,Perplexity"),
        (folder / "profiles" / "large", "tables/large-1-seed/bit_scaling.csv:2 bits,Perplexity"),
    ):
        out = place / "results" / "runs" / run / "train.json"
        out.parent.mkdir(parents=True)
        out.write_text("{}")
        entry = {"cmd": "x", "deps": [{"path": "code", "md5": "ab"}]}
        entry["outs"] = [{"path": f"results/runs/{run}/train.json", "md5": hashlib.md5(b"{}").hexdigest()}]
        (place / "dvc.lock").write_text(yaml.safe_dump({"stages": {f"train@{run}": entry}}))
        text = "\n".join(trace(address, scales, ROOT / "reports" / "published"))
        assert f"train@{run}: entry SHA-256" in text and "code ab (MD5)" in text and "(as on disk)" in text
        out.write_text("changed")
        assert "ON DISK ANOTHER" in "\n".join(trace(address, scales, ROOT / "reports" / "published"))
        (place / "dvc.lock").unlink()
        assert "has no record of the pipeline" in "\n".join(trace(address, scales, ROOT / "reports" / "published"))
        shutil.rmtree(place / "results" / "runs")


def test_numbers_name_the_same_cell_as_labels(built):
    columns = list(tables.by_condition(built[2]))
    assert columns[1] == "Mean accuracy, %"
    by_label = chain(built, "tables/bit_scaling.csv:2 bits,Mean accuracy, %")
    assert by_label == chain(built, "tables/bit_scaling.csv:3,2")


def test_cells_of_other_scales_papers_and_verdicts_are_traced(built):
    assert "profiles/large" in chain(built, "reports/tables/large-1-seed/bit_scaling.csv:2 bits,Perplexity")
    text = chain(built, "tables/bit_scaling-acc.csv:TinyLlama-1.1B (follow-up),2 bits")
    assert "0.4071" in text and "followup_bits.csv" in text and "tables 1-3" in text
    claim = built[2].claims[0]
    text = chain(built, f"tables/verdicts.csv:bit_scaling/{claim.id},micro")
    assert claim.verdict.explanation in text and all(run.run in text for run in built[2].runs)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("nothing", r"write it as reports/tables/NAME\.csv:ROW,COLUMN"),
        ("tables/nothing.csv:1,1", r"nothing\.csv is no table whose cells come from runs; there are bit_scaling"),
        ("tables/bit_scaling.csv:7 bits,Perplexity", "has no row for .* it has full precision; 3 bits"),
        ("tables/bit_scaling.csv:2 bits,Joy", "has no column for .* it has Perplexity"),
        ("tables/bit_scaling-tasks.csv:chance,piqa", "no result of a run"),
    ],
)
def test_cells_that_cannot_be_traced_are_refused(built, cell, message):
    with pytest.raises(UserError, match=message):
        chain(built, cell)


def test_publishing_replaces_what_was_there_and_needs_a_study(built, tmp_path):
    folder = built[0] / "profiles" / "large"
    stale = built[0] / "reports" / "scales" / "large-1-seed" / "studies" / "gone.json"
    stale.write_text("{}")
    assert publish(folder / "params.yaml", folder / "results") == stale.parent.parent and not stale.exists()
    with pytest.raises(UserError, match="has no study of"):
        publish(folder / "params.yaml", tmp_path)


def test_a_study_that_was_not_computed_is_named(tmp_path):
    params = make_params(bit_scaling_runs(tmp_path / "results", questions=10), root=project(tmp_path))
    with pytest.raises(UserError, match=r"bit_scaling\.json does not exist; run `dvc repro`"):
        build(params, tmp_path, tmp_path / "reports")


def test_a_study_whose_full_precision_is_at_chance_still_makes_a_report(tmp_path):
    section = bit_scaling_runs(tmp_path / "results", questions=60, seeds=1, truths={"full": Truth(0.25, 30.0)})
    params = make_params(section, root=project(tmp_path))
    run_study("bit_scaling", params, tmp_path / "results")
    build(params, tmp_path, tmp_path / "reports")
    text = (tmp_path / "reports" / "report.md").read_text()
    assert "nothing to keep" in text and "not defined" in text


def test_latex_escapes_what_latex_would_eat():
    table = pd.DataFrame({"a_b": ["50 % & −1 ×"]}, index=["x#1"])
    source = cells.to_latex(table, "c_d", "name")
    for escaped in (r"a\_b", r"50 \% \& \ensuremath{-}1 \ensuremath{\times}", r"x\#1", r"\caption{c\_d}"):
        assert escaped in source
    assert source.count(r"\toprule") == source.count(r"\bottomrule") == 1


def test_markdown_and_html_escape_their_own_signs():
    table = pd.DataFrame({"a": ["x|y", "<b> [1, 2]"]}, index=["1", "2"])
    assert r"x\|y" in cells.to_markdown(table)
    assert '&lt;b&gt; <span class="interval">[1, 2]</span>' in cells.to_html(table, "cap")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3.21, "3.2 s"),
        (41.4, "41 s"),
        (185.0, "3 min 5 s"),
        (7830.0, "2 h 10 min"),
    ],
)
def test_durations_are_for_people(seconds, text):
    assert tables.duration(seconds) == text


def test_memory_is_for_people():
    assert tables.memory(700 * 2**20) == "700 MiB" and tables.memory(3 * 2**29) == "1.5 GiB"


def test_inlined_figures_follow_the_theme_and_keep_their_ids_apart(tmp_path):
    with matplotlib.rc_context(LOOK):
        figure, ax = axes("title", "y")
        ax.plot([1, 2], [3, 4], color=SERIES[0])
    source = save(Drawing(figure, "caption"), tmp_path / "x", "from here")
    assert INK in source and "<dc:date>" not in source
    assert "from here" in source and b"from here" in (tmp_path / "x.png").read_bytes()
    piece = inline_svg(source, "one", "A <title>")
    assert INK not in piece and "var(--ink)" in piece and "var(--series-1)" in piece
    ids = re.findall(r'\bid="([^"]+)"', piece)
    assert ids and set(re.findall(r'href="#([^"]+)"', piece)) | set(re.findall(r"url\(#([^)]+)\)", piece)) == set(ids)
    assert not set(ids) & set(re.findall(r'\bid="([^"]+)"', inline_svg(source, "two", "A <title>")))
    assert "A &lt;title&gt;" in piece
    ElementTree.fromstring(piece)


def trained(report, **parameters):
    """A copy of a study whose runs were trained with these parameters of a run, one after the other."""
    values = [dict(zip(parameters, one, strict=True)) for one in zip(*parameters.values(), strict=True)]
    runs = []
    for index, run in enumerate(run for run in report.runs if run.training):
        used = {"run": {"validate_every": 10} | values[index % len(values)], "data": {"training_text": "t"}}
        runs.append(run.model_copy(update={"training": run.training.model_copy(update={"parameters_used": used})}))
    return report.model_copy(update={"runs": runs})


def lines(drawing):
    return drawing.figure.axes[0].get_lines()


def test_curves_draw_the_validations_that_all_runs_have_and_say_on_what(built):
    report = trained(built[2], validate_every=[30], validation_sequences=[8])
    drawing = training_curves(report, built[1])["training-perplexity"]
    assert {tuple(line.get_xdata()) for line in lines(drawing)} == {(0, 30, 60)}
    assert (
        "On 8 validation sequences of 128 tokens: without an interval, and not the held-out text that scores"
        in drawing.caption
    )
    report = trained(built[2], validate_every=[10, 30], validation_sequences=[8, 24])
    assert "On 8 to 24 validation sequences:" in training_curves(report)["training-perplexity"].caption


def test_losses_of_different_kinds_share_no_axis(built):
    alike = trained(built[2], loss=["jsd", "jsd"], gamma=[0.2, 0.3])  # which is a parameter of CAKLD alone
    assert "training-loss" in training_curves(alike)
    for different in ({"loss": ["jsd", "tsld"]}, {"loss": ["cakld", "cakld"], "gamma": [0.2, 0.3]}):
        report = trained(built[2], **different)
        assert set(training_curves(report)) == {"training-perplexity"}
        assert set(run_curves(report.runs[0].training)) == {"loss", "perplexity"}


def test_captions_tell_marginal_intervals_from_paired_differences(built):
    drawings = comparison_figures(built[2])
    assert {ALONE in drawing.caption for name, drawing in drawings.items() if "published" not in name} == {True}
    assert {ALONE in drawing.caption for name, drawing in drawings.items() if "published" in name} == {False}


def test_a_crossing_is_drawn_without_what_lies_far_above_it():
    levels = {"small, 16 bits": (16, 80.0), "small, 1 bit": (1, 900.0), "large, 2 bits": (8, 75.0)}
    common = {"kind": "mean", "metric": "perplexity", "task": "t"}
    rows = pd.DataFrame(
        [
            common | {"condition": name, "model": name[:5], "level": level, "value": y, "low": 0.9 * y, "high": 1.1 * y}
            for name, (level, y) in levels.items()
        ]
    )
    whole, near = size_panel(rows, "perplexity", "size", "x"), size_panel(rows, "perplexity", "size", "x", close=True)
    assert whole.figure.axes[0].get_ylim()[1] > 900 and near.figure.axes[0].get_ylim()[1] < 85
    assert sorted(text.get_text() for text in near.figure.axes[0].texts) == ["16", "2"]
    assert ALONE in whole.caption and ALONE not in near.caption


def weights(*zeros):
    """A model of two blocks whose layers have these shares of zeros."""
    names = [f"model.layers.{block}.{name}" for block in (0, 1) for name in ("self_attn.q_proj", "mlp.up_proj")]
    layers = [
        LayerSummary(name=name, weights=4, zeros=value, entropy=1.0, error=value)
        for name, value in zip(names, zeros, strict=True)
    ]
    edges = {"edges": [-1.0, 0.0, 1.0], "original": [2, 2], "latent": [2, 2], "low_bit": [4, 0]}
    histograms = [Histogram(layer=names[0], **edges)]
    return WeightSummary(zeros=0.1, entropy=1.0, error=0.1, layers=layers, histograms=histograms)


def test_series_are_told_apart_without_colour_and_where_there_are_no_markers():
    styles = [series_style(index) for index in range(12)]
    assert len({(style["color"], style["marker"]) for style in styles}) == 12
    assert len({(style["color"], style["linestyle"]) for style in styles}) == 12


def test_layers_are_grouped_by_kind_and_lines_that_coincide_both_show():
    found = {"a": weights(0.0, 0.4, 0.0, 0.5), "b": weights(0.0, 0.4, 0.0, 0.5), "c": weights(0.9, 0.8, 0.9, 0.8)}
    ax = layers_panel(found, "zeros").figure.axes[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["q", "up"]
    drawn = [line for line in ax.get_lines() if len(line.get_xdata()) == 2 and line.get_marker() != "None"]
    assert [list(line.get_ydata()) for line in drawn[:2]] == [[0.0, 0.0], [0.4, 0.5]]
    assert [line.get_linestyle() == "--" for line in drawn] == [False, False, True, True, False, False]
    assert len({line.get_marker() for line in drawn}) == 3
    assert {line.get_markerfacecolor() for line in drawn} == {"none"}


def test_weights_that_training_left_where_they_were_hide_nothing():
    summary = weights(0.1, 0.1, 0.1, 0.1)
    drawing = weight_distribution("2 bits", summary, summary.histograms[0])
    original, latent = (
        next(patch for patch in drawing.figure.axes[0].patches if patch.get_label() == label)
        for label in ("original", "latent")
    )
    assert original.get_linewidth() > 2 * latent.get_linewidth() and original.get_zorder() <= latent.get_zorder()


def test_the_style_sheet_defines_every_colour_that_figures_use():
    css = (ROOT / "reports" / "templates" / "report.css").read_text()
    light, dark = css.split("@media (prefers-color-scheme: dark)")[:2]
    for name in ("--ink", "--muted", "--line", "--paper", *(f"--series-{i + 1}" for i in range(len(SERIES)))):
        assert f"{name}:" in light and f"{name}:" in dark
