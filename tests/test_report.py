"""The report: self-contained, well-formed, the same bytes every time, and every number from a file."""

import re
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

import matplotlib
import pandas as pd
import pytest

from bitdistiller.analysis.study import run_study
from bitdistiller.errors import UserError
from bitdistiller.report import build_report, tables, verdict_lines
from bitdistiller.report.figures import INK, LOOK, SERIES, Drawing, axes, inline_svg, save
from tests.synthetic import ROOT, Truth, bit_scaling_runs, make_params

TASKS = {"piqa": 0.5, "arc_easy": 0.25}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A report over two tasks, its runs deleted before it was built: drawing needs only the study's record."""
    folder = tmp_path_factory.mktemp("report")
    params = make_params(
        bit_scaling_runs(
            folder, questions=200, chance=TASKS, truths={"full": Truth(0.6, 30.0), 1: Truth(0.375, 1500.0)}
        )
    )
    report = run_study("bit_scaling", params, folder)
    shutil.rmtree(folder / "runs")
    build_report(params, folder, folder / "reports")
    return folder, params, report


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


def test_the_page_is_well_formed_and_needs_nothing_else(built):
    source = (built[0] / "reports" / "report.html").read_text()
    page = Page(source)
    assert page.open == [] and "script" not in page.tags and "link" not in page.tags
    assert len(page.ids) == len(set(page.ids))
    assert page.references and all(ref.startswith("#") and ref[1:] in page.ids for ref in page.references)
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\"'\s<>)]+", source)) <= namespaces
    assert "@import" not in source and not re.findall(r"url\((?!#)", source)
    for piece in re.findall(r"<svg.*?</svg>", source, flags=re.DOTALL):
        ElementTree.fromstring(piece)


def test_the_page_holds_every_verdict_and_every_run(built):
    text = " ".join(Page((built[0] / "reports" / "report.html").read_text()).text)
    markdown = (built[0] / "reports" / "report.md").read_text()
    for claim in built[2].claims:
        for piece in (claim.sentence, claim.verdict.text, claim.verdict.explanation, claim.verdict.outcome):
            assert piece in text and piece in markdown
    for run in built[2].runs:
        assert run.run in text and run.run in markdown
        assert run.environment.commit in text


def test_the_origin_of_the_weights_stands_where_their_numbers_are(built):
    for name in ("report.html", "report.md"):
        source = (built[0] / "reports" / name).read_text()
        place = source.index(built[2].runs[0].origin)
        heading = source.rindex("Measured beside published", 0, place)
        assert heading < place < source.index("TinyLlama-1.1B (follow-up)", place)


def test_markdown_points_at_figures_that_exist(built):
    out = built[0] / "reports"
    paths = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (out / "report.md").read_text())
    assert len(paths) == 8
    for path in paths:
        ElementTree.parse(out / path)
        assert (out / path).with_suffix(".png").stat().st_size > 5000


def test_building_twice_gives_the_same_bytes(built):
    folder, params, _ = built
    build_report(params, folder, folder / "again")
    files = sorted(p.relative_to(folder / "again") for p in (folder / "again").rglob("*") if p.is_file())
    assert len(files) > 20
    for name in files:
        assert (folder / "again" / name).read_bytes() == (folder / "reports" / name).read_bytes(), name


def test_only_the_paper_scale_may_be_compared_in_absolute_terms(built):
    folder, params, _ = built
    small = (folder / "reports" / "report.md").read_text()
    titles = re.findall(r"\*\*(.*measured beside published.*)\*\*", small)
    assert len(titles) == 4 and all("not comparable with the papers' absolute numbers" in t for t in titles)
    build_report(params.model_copy(update={"scale": "paper"}), folder, folder / "paper")
    assert "not comparable" not in (folder / "paper" / "report.md").read_text()
    assert "not comparable" not in (folder / "paper" / "report.html").read_text()


def test_measured_and_published_never_share_a_row(built):
    for table in tables.beside(built[2]).values():
        origins = {model: origin for origin, model in table.index}
        assert len(origins) == len(table)
        assert list(origins.values()) == ["measured here"] + ["published"] * 5
        assert table.loc["measured here"].map(lambda cell: "[" in cell).all(axis=None)
        assert not table.loc["published"].map(lambda cell: "[" in cell).any(axis=None)


def test_task_table_starts_with_chance(built):
    table = tables.by_task(built[2])
    assert table.index[0] == "chance" and table.iloc[0].tolist() == ["50.0", "25.0"]
    assert list(table.columns) == list(TASKS)


def test_verdict_lines_are_one_a_claim(built):
    folder, params, report = built
    lines = verdict_lines(params, folder)
    assert len(lines) == len(report.claims)
    for line, claim in zip(lines, report.claims, strict=True):
        assert claim.verdict.outcome in line and f"bit_scaling/{claim.id}" in line and line.endswith(claim.verdict.text)


def test_a_study_that_was_not_computed_is_named(tmp_path):
    params = make_params(bit_scaling_runs(tmp_path, questions=10))
    with pytest.raises(UserError, match=r"bit_scaling\.json does not exist; run `dvc repro`"):
        build_report(params, tmp_path, tmp_path / "reports")


def test_a_study_whose_full_precision_is_at_chance_still_makes_a_report(tmp_path):
    params = make_params(bit_scaling_runs(tmp_path, questions=60, seeds=1, truths={"full": Truth(0.25, 30.0)}))
    run_study("bit_scaling", params, tmp_path)
    build_report(params, tmp_path, tmp_path / "reports")
    text = (tmp_path / "reports" / "report.md").read_text()
    assert "nothing to keep" in text and "not defined" in text


def test_latex_escapes_what_latex_would_eat():
    table = pd.DataFrame({"a_b": ["50 % & −1 ×"]}, index=["x#1"])
    source = tables.to_latex(table, "c_d", "name")
    for escaped in (r"a\_b", r"50 \% \& $-$1 $\times$", r"x\#1", r"\caption{c\_d}"):
        assert escaped in source
    assert source.count(r"\toprule") == source.count(r"\bottomrule") == 1


def test_markdown_and_html_escape_their_own_signs():
    table = pd.DataFrame({"a": ["x|y", "<b> [1, 2]"]}, index=["1", "2"])
    assert r"x\|y" in tables.to_markdown(table)
    assert '&lt;b&gt; <span class="interval">[1, 2]</span>' in tables.to_html(table, "cap")


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
    source = save(Drawing(figure, "caption"), tmp_path / "x")
    assert INK in source and "<dc:date>" not in source
    piece = inline_svg(source, "one", "A <title>")
    assert INK not in piece and "var(--ink)" in piece and "var(--series-1)" in piece
    ids = re.findall(r'\bid="([^"]+)"', piece)
    assert ids and all(name.startswith("one-") for name in ids)
    assert set(re.findall(r'href="#([^"]+)"', piece)) | set(re.findall(r"url\(#([^)]+)\)", piece)) <= set(ids)
    assert "A &lt;title&gt;" in piece
    ElementTree.fromstring(piece)


def test_the_style_sheet_defines_every_colour_that_figures_use():
    css = (ROOT / "reports" / "templates" / "report.css").read_text()
    light, dark = css.split("@media (prefers-color-scheme: dark)")[:2]
    for name in ("--ink", "--muted", "--line", "--paper", *(f"--series-{i + 1}" for i in range(len(SERIES)))):
        assert f"{name}:" in light and f"{name}:" in dark
