"""The paper and every table compile with plain pdflatex; skipped where there is no TeX."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bitdistiller.analysis.record import StudyReport
from bitdistiller.config import load_params
from bitdistiller.report.latex import escape
from bitdistiller.report.variables import variables
from tests.synthetic import ROOT

needs_tex = pytest.mark.skipif(
    not (shutil.which("pdflatex") and shutil.which("bibtex")),
    reason="pdflatex is not on the path: install Debian's texlive-latex-base and texlive-latex-recommended",
)
REPORTS = ROOT / "reports"
OVERFULL_POINTS = 5.0  # what nobody sees: 1.8 mm
PREAMBLE = r"""\documentclass{article}
\usepackage[utf8]{inputenc}
\usepackage{amssymb,booktabs}
\IfFileExists{multirow.sty}{\usepackage{multirow}}{\newcommand{\multirow}[4][]{##4}}
\begin{document}
"""


def latex(folder: Path, name: str) -> str:
    """Run pdflatex once; its log, in lines that are not broken."""
    command = ["pdflatex", "-interaction=nonstopmode", "-file-line-error", "-no-shell-escape", name]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "max_print_line": "10000"}
    subprocess.run(command, cwd=folder, env=environment, capture_output=True)
    return (folder / f"{name}.log").read_text(errors="replace")


def errors(log: str) -> list[str]:
    """``file:line: message`` of every error."""
    return re.findall(r"^(\S+:\d+: .*|! .*)$", log, re.MULTILINE)


def complaints(log: str) -> list[str]:
    """Errors, undefined references and citations, floats and boxes that do not fit."""
    wide = [line for points, line in overfull(log) if points > OVERFULL_POINTS]
    return errors(log) + wide + re.findall(r"^.*(?:undefined|Float too large|multiply defined).*$", log, re.MULTILINE)


def overfull(log: str) -> list[tuple[float, str]]:
    return [
        (float(points), line) for line, points in re.findall(r"^(Overfull \\hbox \(([\d.]+)pt.*)$", log, re.MULTILINE)
    ]


def committed_studies() -> list[StudyReport]:
    names = load_params(ROOT / "params.yaml").studies
    return [StudyReport.read(ROOT / "results" / "studies" / f"{name}.json") for name in names]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """``reports/`` as the report leaves it: hand-written sources and tables as committed, variables made now."""
    reports = tmp_path_factory.mktemp("latex") / "reports"
    shutil.copytree(REPORTS / "paper", reports / "paper", ignore=shutil.ignore_patterns("*.pdf", "*.aux", "*.log"))
    shutil.copy(REPORTS / "references.bib", reports)
    for name in ("tables", "figures"):
        (reports / name).symlink_to(REPORTS / name)
    (reports / "variables.tex").write_text(variables({"micro": committed_studies()}))
    return reports


@needs_tex
def test_the_paper_compiles_and_nothing_in_it_is_undefined_or_too_wide(tree):
    paper = tree / "paper"
    latex(paper, "paper")
    bibtex = subprocess.run(["bibtex", "paper"], cwd=paper, capture_output=True, text=True)
    assert bibtex.returncode == 0 and "Warning" not in bibtex.stdout, bibtex.stdout
    latex(paper, "paper")
    log = latex(paper, "paper")
    assert complaints(log) == []
    assert re.search(r"Output written on paper\.pdf \(\d+ pages", log)


@needs_tex
def test_a_macro_that_is_gone_a_wide_line_and_a_missing_reference_are_found(tmp_path):
    body = r"\BDPplNoBit\ \ref{tab:none}" + "\n\n" + r"\noindent\hbox to 2\linewidth{x}" + "\n\\end{document}\n"
    (tmp_path / "bad.tex").write_text(PREAMBLE + body)
    found = "\n".join(complaints(latex(tmp_path, "bad")))
    assert "Undefined control sequence" in found and "tab:none" in found and "Overfull" in found


@needs_tex
def test_every_table_compiles_with_no_more_than_the_packages_it_names(tmp_path):
    (tmp_path / "tables").symlink_to(REPORTS / "tables")
    names = sorted(path.stem for path in (REPORTS / "tables").glob("*.tex"))
    assert len(names) > 20
    body = "".join(f"\\input{{tables/{name}}}\\clearpage\n" for name in names)
    (tmp_path / "all.tex").write_text(PREAMBLE + body + "\\end{document}\n")
    log = latex(tmp_path, "all")
    assert errors(log) == []
    labels = re.findall(r"\\newlabel\{tab:([^}]+)\}", (tmp_path / "all.aux").read_text())
    assert sorted(labels) == names


def test_every_work_the_paper_cites_is_in_the_references_and_the_other_way_round():
    source, references = (REPORTS / "paper" / "paper.tex").read_text(), (REPORTS / "references.bib").read_text()
    cited = {key for keys in re.findall(r"\\cite\{([^}]+)\}", source) for key in keys.split(",")}
    entries = re.findall(r"^@\w+\{([^,]+),$", references, re.MULTILINE)
    assert sorted(cited) == sorted(entries)


def test_the_paper_takes_numbers_tables_and_figures_from_the_report():
    source = (REPORTS / "paper" / "paper.tex").read_text()
    made = variables({"micro": committed_studies()})
    used = set(re.findall(r"\\(BD[A-Z]\w+)", source)) - {"BDReports"}
    assert len(used) >= 12
    assert {name for name in used if f"\\newcommand{{\\{name}}}" not in made} == set()
    tables = re.findall(r"\\BDtable\{(\w+)\}", source)
    assert {"bit_scaling", "one_bit_collapse", "verdicts"} <= set(tables)
    figures = re.findall(r"\\BDfigure\{([\w-]+)\}\{([\w-]+)\}", source)
    assert figures and all((REPORTS / "figures" / f"{name}.svg").exists() for pair in figures for name in pair)
    for name in tables:
        assert (REPORTS / "tables" / f"{name}.tex").exists()


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("50 % & a_b #1 {x}", r"50 \% \& a\_b \#1 \{x\}"),
        ("−1.5×", r"\ensuremath{-}1.5\ensuremath{\times}"),
        ("a\\b~c^d", r"a\textbackslash{}b\textasciitilde{}c\textasciicircum{}d"),
        ("Kydlíček", "Kydlíček"),
        ("✓ 3–4 “x”", r"\ensuremath{\checkmark} 3--4 ``x''"),
        ("字", "[cjk unified ideograph-5b57]"),
    ],
)
def test_text_becomes_latex(text, source):
    assert escape(text) == source


@needs_tex
def test_every_sign_that_is_escaped_compiles_in_text_and_numbers_in_formulas(tmp_path):
    signs = "".join(chr(code) for code in range(32, 127)) + "–—−×±≤≥→γ✓✗“”‘’…\u00a0éčŁ字"
    body = f"{escape(signs)}\n\n${escape('−1.5× ± 2')}$\n\\end{{document}}\n"
    (tmp_path / "signs.tex").write_text(PREAMBLE + body)
    assert errors(latex(tmp_path, "signs")) == []
