"""Two sets of results side by side: noise is not reported, what exceeds it is, and revisions are read from git."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from bitdistiller.analysis.difference import compare_results
from bitdistiller.analysis.snapshot import RunSnapshot, ScoreExcerpt, Snapshot, read_snapshot
from bitdistiller.analysis.stats import accuracy, log_perplexity, mcnemar, panel
from bitdistiller.analysis.study import run_study
from bitdistiller.cli import app
from bitdistiller.errors import UserError
from bitdistiller.report.difference import compare
from bitdistiller.results import read_items
from tests.synthetic import PERPLEXITY, Truth, bit_scaling_runs, make_params, write_reasoning

WORSE = {2: Truth(0.30, 90.0)}  # instead of 0.41 and 45


def scale(folder: Path, truths: dict | None = None) -> Path:
    """A scale's folder with the runs and the verdicts of a study."""
    section = bit_scaling_runs(folder / "results", truths=truths, seeds=1, questions=400)
    run_study("bit_scaling", make_params(section), folder / "results")
    return folder


@pytest.fixture(scope="module")
def scales(tmp_path_factory) -> tuple[Path, Path]:
    """Two scales that differ in what 2 bits are."""
    folder = tmp_path_factory.mktemp("difference")
    return scale(folder / "a"), scale(folder / "b", WORSE)


@pytest.fixture
def copied(scales, tmp_path) -> tuple[str, Path]:
    """The first scale, and a copy of it to change."""
    shutil.copytree(scales[0], tmp_path / "copy")
    return str(scales[0]), tmp_path / "copy"


def edit(path: Path, change: Callable[[dict], object]) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def differences(before: Path | str, after: Path | str) -> dict:
    found = compare_results(read_snapshot(str(before)), read_snapshot(str(after)))
    return {(score.run, score.metric): score for score in found.scores}


def test_equal_results_are_one_line(copied):
    before, after = copied
    text = compare(before, str(after))
    assert text == f"`{before}` and `{after}` have the same results: 5 runs, 10 scores, 4 verdicts.\n"
    everything = compare(before, str(after), everything=True)
    assert everything.count("1.000× [1.000, 1.000]") == 5 and everything.count("0.0 points [0.0, 0.0]") == 5


def test_only_the_run_that_changed_beyond_noise_is_listed(scales):
    text = compare(*map(str, scales))
    listed = [line for line in text.splitlines() if line.startswith("| micro-")]
    assert len(listed) == 2 and all(line.startswith("| micro-int2-s0 ") for line in listed)
    assert "| 2.00× [" in text or "| 1.99× [" in text or "| 2.01× [" in text
    assert "Of 10 scores, 8 are the same, 0 differ within noise and 2 beyond it" in text
    assert "10 compared on the same items" in text
    assert "| micro-int3-s0 " in compare(*map(str, scales), everything=True)


def test_noise_alone_is_counted_and_not_listed(copied):
    before, after = copied
    path = after / "results" / "runs" / "micro-int2-s0"
    items = pd.read_csv(path / "items.csv")
    wrong = items.index[(items["metric"] == "acc") & (items["value"] == 0)][:3]
    items.loc[wrong, "value"] = 1.0
    items.to_csv(path / "items.csv", index=False)
    edit(path / "scores.json", lambda record: record["scores"][0].update(value=record["scores"][0]["value"] + 3 / 400))
    text = compare(before, str(after))
    assert "9 are the same, 1 differ within noise and 0 beyond it" in text and "| micro-" not in text


def test_differences_are_the_paired_statistics_corrected_together(scales):
    found = differences(*scales)
    items = [read_items(folder / "results" / "runs" / "micro-int2-s0" / "items.csv") for folder in scales]
    right = [panel([table], "acc", ["continuation"]) for table in items]
    difference = accuracy([right[1], right[0]], [1, -1])
    score = found["micro-int2-s0", "acc"]
    assert (score.effect, score.low, score.high) == pytest.approx(
        (100 * difference.value, 100 * difference.low, 100 * difference.high)
    )
    nll = [panel([table], "nll", [PERPLEXITY]) for table in items]
    ratio = log_perplexity([nll[1], nll[0]], [1, -1])
    other = found["micro-int2-s0", "perplexity"]
    assert (other.effect, other.low) == pytest.approx((np.exp(ratio.value), np.exp(ratio.low)))
    ordered = sorted([(mcnemar(*right).p, score.p), (ratio.p_value(), other.p)])
    assert ordered[0][1] == pytest.approx(10 * ordered[0][0], abs=0)  # Holm: the smallest of ten
    assert ordered[1][1] == pytest.approx(max(9 * ordered[1][0], ordered[0][1]), abs=0)
    assert score.unit == "points" and other.unit == "times" and score.paired and other.paired


def test_scores_of_reasoning_are_compared_too(copied):
    """Bits a byte as a ratio, solved shares in points, both on the same items."""
    before, after = copied
    for folder, truth in ((Path(before), Truth(0.4, 45.0)), (after, Truth(0.4, 45.0, solved=0.5, bits=0.66))):
        write_reasoning(folder / "results" / "runs" / "micro-int2-s0", truth, seed=1)
    try:
        found = {
            (score.task, score.metric): score
            for score in compare_results(read_snapshot(before), read_snapshot(str(after))).scores
        }
        bits, solved = found["gsm8k", "bits_per_byte"], found["humaneval", "pass_at_1"]
        assert bits.unit == "times" and bits.effect == pytest.approx(1.1, rel=1e-3) and bits.paired
        assert solved.unit == "points" and solved.effect == pytest.approx(10, abs=2) and solved.paired
        text = compare(before, str(after), everything=True)
        assert "| gsm8k " in text and "| reasoning, time of all runs |" in text
    finally:
        shutil.rmtree(Path(before) / "results" / "runs" / "micro-int2-s0" / "reasoning")


def test_swapping_the_sides_swaps_the_signs(scales):
    there, back = differences(*scales), differences(*reversed(scales))
    for key, score in there.items():
        assert back[key].p == pytest.approx(score.p)
        if score.unit == "times":
            assert back[key].effect == pytest.approx(1 / score.effect)
        else:
            assert (back[key].low, back[key].high) == pytest.approx((-score.high, -score.low), abs=1e-9)


@pytest.mark.parametrize("how", ["none kept", "others"])
def test_without_the_same_items_the_comparison_is_of_independent_samples(copied, how):
    before, after = copied
    path = after / "results" / "runs" / "micro-int3-s0" / "items.csv"
    if how == "none kept":
        path.unlink()
    else:
        pd.read_csv(path).replace({"item": {"q0": "q-other", "d0": "d-other"}}).to_csv(path, index=False)
    found = differences(before, after)
    score, ppl = found["micro-int3-s0", "acc"], found["micro-int3-s0", "perplexity"]
    stored = json.loads((path.parent / "scores.json").read_text())["scores"]
    error = next(s["standard_error"] for s in stored if s["metric"] == "acc")
    assert not score.paired and score.effect == 0 and score.p == 1
    assert score.high == pytest.approx(100 * 1.963 * 2**0.5 * error, rel=1e-3)  # t with 798 degrees of freedom
    assert ppl.high == pytest.approx(np.exp(1.98 * 2**0.5 * 0.02), rel=1e-3)  # t with 118
    assert found["micro-int2-s0", "acc"].paired
    assert "8 compared on the same items" in compare(before, str(after), everything=True)
    assert ", unpaired |" in compare(before, str(after), everything=True)


@pytest.mark.slow
def test_of_two_models_that_are_equally_good_one_in_twenty_families_differs_at_most():
    rng, alarms = np.random.default_rng(0), 0
    for _ in range(60):
        sides = [_guessing(rng, runs=8) for _ in range(2)]
        alarms += any(score.beyond_noise for score in compare_results(*sides).scores)
    assert alarms <= 7  # of 60 families with a true rate of 5 %, more would come up once in a hundred times


def _guessing(rng: np.random.Generator, runs: int, questions: int = 150) -> Snapshot:
    """Runs that answer at random, all equally well."""
    found = {}
    for index in range(runs):
        value = (rng.random(questions) < 0.5).astype(float)
        items = pd.DataFrame({"task": "t", "item": [f"q{i:03}" for i in range(questions)], "metric": "acc"})
        score = ScoreExcerpt(task="t", metric="acc", value=float(value.mean()), standard_error=0.04, n=questions)
        found[f"run{index}"] = RunSnapshot({("t", "acc"): score}, {}, {}, "m", items.assign(value=value, weight=1.0))
    return Snapshot("s", found, {})


def test_runs_scores_and_verdicts_of_one_side_are_named(copied):
    before, after = copied
    shutil.rmtree(after / "results" / "runs" / "micro-int1-s0")
    edit(after / "results" / "runs" / "micro-int3-s0" / "scores.json", lambda record: record["scores"].pop(0))
    edit(after / "results" / "studies" / "bit_scaling.json", lambda record: record["claims"].pop(0))
    text = compare(before, str(after))
    assert "Runs only in A: micro-int1-s0." in text
    assert "Scores only in A: micro-int3-s0: acc on continuation." in text
    assert "Verdicts only in A: bit_scaling/monotone." in text
    assert "only in B" not in text and "only in B: micro-int1-s0." in compare(str(after), before)


def test_a_changed_verdict_shows_both_outcomes_with_their_effects(copied):
    before, after = copied

    def turn(record: dict) -> None:
        record["claims"][1]["verdict"].update(outcome="undecided", effect=0.5, low=0.2, high=0.8)

    edit(after / "results" / "studies" / "bit_scaling.json", turn)
    text = compare(before, str(after))
    line = next(line for line in text.splitlines() if line.startswith("| bit_scaling/keeps-most "))
    assert "✓ supported, " in line and "? undecided, 0.50 [0.20, 0.80]" in line
    assert "1 of 4 verdicts changed" in text


def test_changed_parameters_are_listed_once_with_their_runs(copied):
    before, after = copied
    for run in ("micro-int2-s0", "micro-int3-s0"):
        path = after / "results" / "runs" / run / "scores.json"
        edit(path, lambda record: record["parameters_used"]["run"].update(seed=7, steps=20))
    text = compare(before, str(after))
    assert "| run.seed | 0 | 7 | micro-int2-s0, micro-int3-s0 |" in text
    assert "| run.steps | – | 20 | micro-int2-s0, micro-int3-s0 |" in text


def test_cost_is_shown_when_it_changed_even_if_results_did_not(copied):
    before, after = copied
    for run in ("micro-int1-s0", "micro-int2-s0", "micro-int3-s0"):
        path = after / "results" / "runs" / run / "train.json"
        edit(path, lambda record: record["cost"].update(seconds=record["cost"]["seconds"] * 1.5))
    text = compare(before, str(after))
    assert "have the same results" in text and "+50 %" in text
    assert "| training, time of all runs | 2 min 34 s | 3 min 50 s | +50 % |" in text
    assert "memory" not in text and "largest memory of a run" in compare(before, str(after), everything=True)


def test_another_machine_is_named_beside_the_times(copied):
    before, after = copied
    for path in after.glob("results/runs/*/scores.json"):
        edit(path, lambda record: (record["cost"].update(seconds=1.0), record["environment"].update(machine="Other")))
    assert "| machine | Test CPU, Linux x86_64 | Other | – |" in compare(before, str(after))


def test_records_of_another_schema_are_read_as_far_as_they_go(copied):
    before, after = copied
    for path in after.glob("results/runs/*/scores.json"):
        edit(path, lambda record: (record.pop("environment"), record.update(novelty={"x": 1})))
    for path in after.glob("results/studies/*.json"):
        edit(path, lambda record: (record.pop("runs"), record.pop("detectable"), record.update(other=[])))
    assert "have the same results" in compare(before, str(after)).splitlines()[0]


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def repository(scales, tmp_path, monkeypatch) -> Path:
    """A repository with two commits of a scale in a subfolder, whose working tree is at neither."""
    folder = tmp_path / "repository"
    shutil.copytree(scales[0], folder / "profiles" / "small")
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "-m", "first")
    shutil.copytree(scales[1], folder / "profiles" / "small", dirs_exist_ok=True)
    git(folder, "commit", "--quiet", "--all", "-m", "second")
    (folder / "profiles" / "small" / "results" / "runs" / "micro-int3-s0" / "items.csv").unlink()
    (folder / "untracked").write_text("mine")
    monkeypatch.chdir(folder / "profiles" / "small")
    return folder


def test_revisions_are_compared_without_touching_the_working_tree(repository, scales):
    before = git(repository, "status", "--porcelain")
    here, top = compare("HEAD~1", "HEAD"), compare("HEAD~1:profiles/small", "HEAD:profiles/small/")
    folders = compare(*map(str, scales))
    assert here.split("\n", 1)[1] == top.split("\n", 1)[1] == folders.split("\n", 1)[1]
    assert here.startswith("### Results: A = `HEAD~1`, B = `HEAD`\n") and "| micro-int2-s0 |" in here
    assert "unpaired" in compare("HEAD", ".", everything=True)
    assert git(repository, "status", "--porcelain") == before and "?? untracked" in before


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("no-such", "no-such is neither a folder nor a revision of the git repository here"),
        ("--output=x", "--output=x is neither a folder nor a revision"),
        (":profiles", ":profiles is neither a folder nor a revision"),
        ("HEAD:nowhere", "revision HEAD has no results in nowhere; name another folder, as in HEAD:FOLDER"),
        ("HEAD:../..", "revision HEAD has no results in"),
        ("..", r"\.\. has no results/runs/\*/scores\.json; name the folder of a scale, or run `dvc repro` there"),
    ],
)
def test_what_has_no_results_is_refused_in_a_sentence(repository, spec, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        compare("HEAD", spec)
    assert "\n" not in str(caught.value)


def test_outside_a_repository_a_revision_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(UserError, match="HEAD is neither a folder nor a revision"):
        read_snapshot("HEAD")


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("runs/micro-int2-s0/scores.json", "{", "cannot be compared; the file: Invalid JSON"),
        ("runs/micro-int2-s0/scores.json", '{"scores": []}', "cannot be compared; cost: Field required"),
        ("studies/bit_scaling.json", "[]", "studies/bit_scaling.json cannot be compared; the file"),
    ],
)
def test_a_damaged_record_is_named(copied, file, content, sentence):
    before, after = copied
    (after / "results" / file).write_text(content)
    with pytest.raises(UserError, match=sentence):
        compare(before, str(after))


def test_the_command_prints_and_writes_the_same_markdown(scales, tmp_path):
    out = tmp_path / "new" / "comment.md"
    done = CliRunner().invoke(app, ["compare", str(scales[0]), str(scales[1]), "--out", str(out)])
    assert done.exit_code == 0 and done.stdout == out.read_text() == compare(*map(str, scales))
    shown = CliRunner().invoke(app, ["compare", str(scales[0]), str(scales[1]), "--all"])
    assert len(shown.stdout.splitlines()) > len(done.stdout.splitlines())


def test_tables_are_markdown_that_a_comment_can_hold(scales):
    for line in compare(*map(str, scales), everything=True).splitlines():
        assert not line.startswith("|") or (line.endswith(" |") and line.count(" | ") in (2, 3, 4, 6))
