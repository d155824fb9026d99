"""The tidy table: every score of every run once, told apart, the same bytes every time."""

import json

import pandas as pd
import pytest

from bitdistiller.analysis.record import StudyReport
from bitdistiller.analysis.study import run_study
from bitdistiller.config import load_params
from bitdistiller.errors import UserError
from bitdistiller.report.tidy import COLUMNS, tidy, write_tidy
from bitdistiller.results import RunScores
from tests.synthetic import ROOT, Truth, bit_scaling_runs, make_params

TASKS = {"piqa": 0.5, "arc_easy": 0.25}
KEY = ["scale", "model", "method", "bits", "group_size", "teacher", "training_text", "steps", "seed", "task", "metric"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple:
    """A study over two tasks and two seeds, and the folder of its results."""
    folder = tmp_path_factory.mktemp("tidy")
    section = bit_scaling_runs(
        folder, questions=80, seeds=2, chance=TASKS, truths={"full": Truth(0.6, 30.0), 1: Truth(0.375, 1500.0)}
    )
    return run_study("bit_scaling", make_params(section), folder), folder


@pytest.fixture(scope="module")
def committed() -> list[StudyReport]:
    names = load_params(ROOT / "params.yaml").studies
    return [StudyReport.read(ROOT / "results" / "studies" / f"{name}.json") for name in names]


def test_every_score_of_every_run_stands_once_with_its_interval_and_chance(made):
    report, folder = made
    table = tidy({"micro": [report]})
    assert list(table) == list(COLUMNS)
    by_key = table.set_index(["run", "task", "metric"])
    assert by_key.index.is_unique
    count = 0
    for path in sorted((folder / "runs").iterdir()):
        for score in RunScores.read(path / "scores.json").scores:
            row = by_key.loc[(path.name, score.task, score.metric)]
            for name in ("value", "standard_error", "low", "high", "n"):
                assert row[name] == getattr(score, name)
            assert row["chance"] == score.chance or (score.chance is None and pd.isna(row["chance"]))
            count += 1
    assert count == 3 * 9 and (table["task"] != "mean").sum() == count


def test_the_average_over_tasks_has_a_normal_interval_and_the_average_chance(made):
    table = tidy({"micro": [made[0]]})
    row = table[(table["run"] == "micro-int2-s0") & (table["task"] == "mean")].iloc[0]
    assert row["metric"] == "acc" and row["n"] == 160 and row["chance"] == pytest.approx(0.375)
    assert row["high"] - row["value"] == pytest.approx(1.959964 * row["standard_error"])
    assert row["value"] - row["low"] == pytest.approx(1.959964 * row["standard_error"])


def test_a_run_that_studies_share_stands_once(made):
    report = made[0]
    alone, twice = tidy({"micro": [report]}), tidy({"micro": [report, report.model_copy(update={"name": "other"})]})
    pd.testing.assert_frame_equal(alone, twice)


def test_scales_stand_below_each_other_in_their_order(made):
    alone, both = tidy({"micro": [made[0]]}), tidy({"laptop": [made[0]], "micro": [made[0]]})
    assert list(both["scale"].unique()) == ["laptop", "micro"] and len(both) == 2 * len(alone)


def test_studies_of_different_results_are_refused_with_the_run_and_both_numbers(made):
    report = made[0]
    rows = [row.model_copy(update={"value": 99.0}) if row.metric == "perplexity" else row for row in report.rows]
    other = report.model_copy(update={"name": "other", "rows": rows})
    with pytest.raises(
        UserError, match=r"scale micro: run micro-full has perplexity 99 on held-out in study other and"
    ):
        tidy({"micro": [report, other]})


def test_the_method_and_its_columns_tell_all_runs_of_the_micro_scale_apart(committed):
    table = tidy({"micro": committed})
    assert not table.duplicated(KEY).any()
    methods = table.drop_duplicates("run").set_index("run")["method"]
    assert methods["1m-int2"] == "INT-Asym, asymmetric clipping, CAKLD"
    assert methods["1m-ce-t5"] == "INT-Asym, asymmetric clipping, CE + CAKLD (T = 5)"
    assert methods["1m-gamma-max"] == "INT-Asym, asymmetric clipping, CAKLD with gamma max"
    assert methods["1m-llm-qat3"] == "INT-Sym, no clipping, forward KL"
    assert methods["1m-ce"] == "INT-Asym, asymmetric clipping, cross-entropy"
    assert methods["1m-rtn2"] == "INT-Asym, no clipping, rounded"
    assert methods["1m-clip2"] == "INT-Asym, asymmetric clipping, rounded"
    assert methods["1m-full"] == "full precision" and methods["3m-random"] == "random weights"


def test_rounded_weights_are_scores_without_an_interval(committed):
    table = tidy({"micro": committed})
    weights = table[table["task"] == "weights"]
    assert set(weights["metric"]) == {"zeros", "entropy", "error"} and weights["standard_error"].isna().all()
    assert set(weights["run"]) == {run.run for report in committed for run in report.runs if run.weights}


def test_files_hold_the_same_numbers_in_six_digits_and_the_same_bytes_every_time(made, tmp_path):
    table = tidy({"micro": [made[0]]})
    first, second = write_tidy(table, tmp_path / "a"), write_tidy(tidy({"micro": [made[0]]}), tmp_path / "b")
    assert [path.name for path in first] == ["results.csv", "results.json"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    read, records = pd.read_csv(first[0]), json.loads(first[1].read_text())
    assert len(read) == len(records) == len(table)
    for row, record, value in zip(read.to_dict("records"), records, table["value"], strict=True):
        assert row["value"] == record["value"] == float(f"{value:.6g}")
        assert {name for name, cell in row.items() if pd.isna(cell)} == {n for n, c in record.items() if c is None}
