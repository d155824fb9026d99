"""Cells of tables: rounding, standard errors, the best of a column, and what each language makes of them."""

import io

import pandas as pd
import pytest

from bitdistiller.analysis.record import Row
from bitdistiller.report.cells import EMPTY, Cell, Link, mark_best, number, to_csv, to_html, to_latex, to_markdown


def cell(condition: str, metric: str, value: float, error: float | None = None) -> Cell:
    bounds = (None, None) if error is None else (value - 2 * error, value + 2 * error)
    return Cell(
        Row(
            kind="mean", source="measured", model="m", condition=condition, level=None, run=None, task="mean",
            metric=metric, value=value, standard_error=error, low=bounds[0], high=bounds[1], n=10, seeds=1,
        )
    )  # fmt: skip


@pytest.fixture
def table() -> pd.DataFrame:
    """Full precision, which does not compete, and two students."""
    rows = {"full": (20.0, 0.60, 0.1), "a": (30.0, 0.55, 0.2), "b": (40.0, 0.58, 0.3)}
    return pd.DataFrame(
        [
            [cell(name, "perplexity", ppl, 1.25), cell(name, "acc", acc, 0.02), cell(name, "zeros", zeros), EMPTY]
            for name, (ppl, acc, zeros) in rows.items()
        ],
        index=list(rows),
        columns=["Perplexity", "Mean accuracy, %", "Zeros, %", "Flips, %"],
        dtype=object,
    )


def best(table: pd.DataFrame) -> dict[str, list[str]]:
    return {name: [row for row in table.index if getattr(table.at[row, name], "best", False)] for name in table}


def test_lower_perplexity_and_higher_accuracy_are_best_and_zeros_are_neither(table):
    assert best(mark_best(table, {"full"})) == {
        "Perplexity": ["a"], "Mean accuracy, %": ["b"], "Zeros, %": [], "Flips, %": [],
    }  # fmt: skip
    assert best(mark_best(table, set()))["Perplexity"] == ["full"]


def test_the_share_of_the_worst_tokens_is_a_percentage_that_no_one_wins(table):
    shares = {
        name: cell(name, "worst_share", share, 0.001) for name, share in (("full", 0.027), ("a", 0.0214), ("b", 1))
    }
    table["Worst, %"] = pd.Series(shares)
    assert str(shares["a"]) == "2.1 [1.9, 2.3]" and number(0.9876, "worst_share") == "98.8"
    assert best(mark_best(table, {"full"}))["Worst, %"] == []


def test_equal_values_share_the_place_and_one_alone_wins_nothing(table):
    table.at["b", "Perplexity"] = cell("b", "perplexity", 30.0)
    assert best(mark_best(table, {"full"}))["Perplexity"] == ["a", "b"]
    assert best(mark_best(table.copy(), {"full", "b"}))["Mean accuracy, %"] == []


def test_each_language_shows_the_best_and_how_sure_it_is(table):
    marked = mark_best(table, {"full"})
    assert "| a | **30.0 [27.5, 32.5]** | 55.0 [51.0, 59.0] | 20.0 | – |" in to_markdown(marked)
    latex = to_latex(marked, "Measured, with 95 % intervals", "x")
    assert r"a & \textbf{30.0} $\pm$ 1.2 & 55.0 $\pm$ 2.0 & 20.0 & -- \\" in latex
    assert r"\caption{Measured, with standard errors}" in latex and r"\shortstack[r]{Mean \\ accuracy, \%}" in latex
    assert '<td><strong>30.0</strong> <span class="interval">[27.5, 32.5]</span></td>' in to_html(marked, "c")


def test_csv_has_all_digits_and_errors_in_columns_of_their_own(table):
    read = pd.read_csv(io.StringIO(to_csv(table)), index_col=0)
    assert list(read.columns) == [
        "Perplexity", "Perplexity (standard error)", "Mean accuracy, %", "Mean accuracy, % (standard error)",
        "Zeros, %", "Flips, %",
    ]  # fmt: skip
    assert read.loc["b"].iloc[:5].tolist() == [40.0, 1.25, 58.0, 2.0, 30.0] and read["Flips, %"].isna().all()


def test_a_link_leads_somewhere_on_a_page_and_is_a_text_elsewhere():
    table = pd.DataFrame({"x": ["1"]}, index=[Link("run <1>", "../a.html")])
    assert '<a href="../a.html">run &lt;1&gt;</a>' in to_html(table, "c")
    assert "| run <1> | 1 |" in to_markdown(table) and "run <1>,1" in to_csv(table)
