"""The study contract, and every claim driven to each of its outcomes by synthetic results."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from bitdistiller.analysis.published import read_published
from bitdistiller.analysis.study import (
    Results,
    RunResult,
    StudyReport,
    judge,
    load_results,
    load_study,
    run_study,
    studies_dir,
    study_names,
    study_params,
)
from bitdistiller.config import load_params
from bitdistiller.errors import UserError
from bitdistiller.report.tables import study_tables
from bitdistiller.results import RunScores, read_items, write_items
from tests.synthetic import PERPLEXITY, ROOT, Truth, bit_scaling_runs, make_params

STEEP = {
    "full": Truth(0.55, 30.0, 0.002),
    3: Truth(0.47, 34.0, 0.002),
    2: Truth(0.39, 45.0, 0.002),
    1: Truth(0.25, 1500.0, 0.002),
}
FIVE_TASKS = {"piqa": 0.5, "hellaswag": 0.25, "winogrande": 0.5, "arc_easy": 0.25, "arc_challenge": 0.25}

OUTCOMES = [
    ("monotone", "supported", {"truths": STEEP, "questions": 1500}),
    ("monotone", "contradicted", {"truths": STEEP | {2: Truth(0.55, 45.0, 0.002)}, "questions": 1500}),
    ("monotone", "contradicted", {"truths": STEEP | {3: Truth(0.47, 60.0, 0.002)}, "questions": 1500}),
    ("monotone", "undecided", {"truths": STEEP | {3: Truth(0.55, 34.0, 0.002)}, "questions": 1500}),
    ("monotone", "supported", {"truths": STEEP, "questions": 1500, "seeds": 1}),
    ("keeps-most", "supported", {"truths": STEEP | {2: Truth(0.45, 45.0)}, "questions": 1500}),
    ("keeps-most", "contradicted", {"truths": STEEP | {2: Truth(0.30, 45.0)}, "questions": 1500}),
    ("keeps-most", "undecided", {"truths": STEEP | {2: Truth(0.40, 45.0, 0.01)}, "questions": 300}),
    ("keeps-most", "undecided", {"truths": {"full": Truth(0.25, 30.0)}, "questions": 200}),
    ("one-bit-chance", "supported", {"questions": 1000}),
    ("one-bit-chance", "contradicted", {"truths": {1: Truth(0.35, 1500.0)}, "questions": 1000}),
    ("one-bit-chance", "undecided", {"questions": 40}),
    (
        "one-bit-chance",
        "supported",
        {
            "questions": 300,
            "chance": FIVE_TASKS,
            "seeds": 1,
            "truths": {"full": Truth(0.55, 30.0), 1: Truth(0.35, 1500.0)},
        },
    ),
    ("one-bit-perplexity", "supported", {}),
    ("one-bit-perplexity", "contradicted", {"truths": {1: Truth(0.25, 300.0)}}),
    ("one-bit-perplexity", "undecided", {"truths": {1: Truth(0.25, 450.0, 0.05)}}),
]


def results_of(tmp_path: Path, **runs):
    params = make_params(bit_scaling_runs(tmp_path, **runs))
    study = load_study("bit_scaling", studies_dir(params))
    chosen = study_params(study, params)
    return study, load_results(chosen, tmp_path, ROOT / "reports" / "published")


@pytest.mark.parametrize(("claim_id", "outcome", "runs"), OUTCOMES)
def test_every_claim_reaches_every_outcome(tmp_path, claim_id, outcome, runs):
    study, results = results_of(tmp_path, **runs)
    claim = next(claim for claim in study.claims if claim.id == claim_id)
    verdict = judge(claim, results).verdict
    assert verdict.outcome == outcome, verdict.explanation
    assert verdict.seeds == runs.get("seeds", 3)
    assert ("one seed" in verdict.basis) == (verdict.seeds == 1)
    if verdict.effect is not None:
        assert verdict.low <= verdict.effect <= verdict.high
        assert verdict.text in verdict.explanation or claim_id == "one-bit-chance"


def test_every_claim_has_all_three_outcomes_above():
    study = load_study("bit_scaling", ROOT / "studies")
    wanted = {(claim.id, outcome) for claim in study.claims for outcome in ("supported", "contradicted", "undecided")}
    assert wanted <= {(claim_id, outcome) for claim_id, outcome, _ in OUTCOMES}


def test_worse_than_guessing_is_no_better_than_chance(tmp_path):
    study, results = results_of(tmp_path, truths={1: Truth(0.15, 1500.0)}, questions=1000)
    claim = next(claim for claim in study.claims if claim.id == "one-bit-chance")
    verdict = judge(claim, results).verdict
    assert verdict.outcome == "supported" and "below chance" in verdict.explanation


def test_a_study_writes_one_record_that_never_changes_by_itself(tmp_path):
    params = make_params(bit_scaling_runs(tmp_path))
    report = run_study("bit_scaling", params, tmp_path)
    path = tmp_path / "studies" / "bit_scaling.json"
    first = path.read_bytes()
    run_study("bit_scaling", params, tmp_path)
    assert path.read_bytes() == first
    assert StudyReport.read(path) == report
    assert [claim.id for claim in report.claims] == ["monotone", "keeps-most", "one-bit-chance", "one-bit-perplexity"]
    assert {summary.run for summary in report.runs} == {p.name for p in (tmp_path / "runs").iterdir()}
    assert report.curve("micro-full") == [] and len(report.curve("micro-int2-s0")) > 10


def test_the_table_holds_runs_means_and_published_numbers(tmp_path):
    rows = run_study("bit_scaling", make_params(bit_scaling_runs(tmp_path)), tmp_path).frame()
    scores = RunScores.read(tmp_path / "runs" / "micro-int2-s1" / "scores.json")
    mine = rows[rows["run"] == "micro-int2-s1"].set_index(["task", "metric"])["value"]
    assert mine[PERPLEXITY, "perplexity"] == next(s.value for s in scores.scores if s.metric == "perplexity")
    mean = rows[(rows["kind"] == "mean") & (rows["condition"] == "2 bits")].set_index(["task", "metric"])
    seeds = rows[(rows["kind"] == "run") & (rows["condition"] == "2 bits") & (rows["task"] == "continuation")]
    assert len(seeds) == 3 and mean.loc[("mean", "acc"), "value"] == pytest.approx(seeds["value"].mean())
    assert (mean.loc[("mean", "acc"), "seeds"], mean.loc[("mean", "acc"), "n"]) == (3, 600)
    printed = rows[(rows["kind"] == "published") & (rows["metric"] == "perplexity")]
    table = read_published(ROOT / "reports" / "published", "followup_bits.csv")
    assert set(table["ppl"]) <= set(printed["value"])
    assert set(printed[printed["source"] == "bitdistiller_llama2.csv"]["model"]) == {"LLaMA-2-7B", "LLaMA-2-13B"}


def test_one_bits_published_retention_is_two_thirds_plain_and_nothing_above_chance(tmp_path):
    """Follow-up, table 1: TinyLlama's 1-bit "66 %" is what guessing earns."""
    rows = run_study("bit_scaling", make_params(bit_scaling_runs(tmp_path)), tmp_path).frame()
    one_bit = rows[(rows["model"] == "TinyLlama-1.1B") & (rows["condition"] == "1 bit")].set_index("metric")["value"]
    assert one_bit["retention"] == pytest.approx(0.66, abs=0.005)
    assert one_bit["retention_above_chance"] == pytest.approx(0.03, abs=0.005)


def test_published_numbers_come_from_the_files(tmp_path):
    """Change a printed number in a copy of the tables and the claim's published effect follows."""
    folder = tmp_path / "published"
    shutil.copytree(ROOT / "reports" / "published", folder)
    study = load_study("bit_scaling", ROOT / "studies")
    collapse = next(claim for claim in study.claims if claim.id == "one-bit-perplexity").published
    before = {number.model: number.value for number in collapse(folder)}
    table = (folder / "followup_bits.csv").read_text()
    (folder / "followup_bits.csv").write_text(table.replace("2297.22", "4594.44"))
    after = {number.model: number.value for number in collapse(folder)}
    assert after.pop("TinyLlama-1.1B") == pytest.approx(2 * before.pop("TinyLlama-1.1B"))
    assert after == before


def test_no_published_number_is_typed_into_a_study():
    tables = [path.read_text() for path in (ROOT / "reports" / "published").glob("*.csv")]
    printed = {cell for table in tables for cell in re.findall(r"(?<=,)\d+\.\d+(?=,|$)", table, flags=re.MULTILINE)}
    assert len(printed) > 100
    for path in (ROOT / "studies").glob("*.py"):
        assert not [cell for cell in printed if cell in path.read_text()]


def structure(path: Path) -> tuple[StudyReport, Results]:
    """A committed record, and of what it was computed from the structure without any item."""
    report = StudyReport.read(path)
    runs = {
        run.run: RunResult(RunScores.model_construct(**run.model_dump()), pd.DataFrame(), None) for run in report.runs
    }
    params = load_study(report.name, ROOT / "studies").params.model_validate(report.params)
    return report, Results(params, runs, ROOT)


RECORDS = [*(ROOT / "results" / "studies").glob("*.json"), *(ROOT / "reports" / "scales").glob("*/studies/*.json")]


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_committed_record_corrects_as_many_comparisons_as_its_study_declares(path):
    """Those that the data left undefined are declared too; those that nothing was run for, whose n is 0, are not."""
    report, results = structure(path)
    deciding = [part for claim in report.claims for part in claim.verdict.parts if part.outcome]
    whole = [claim.verdict for claim in report.claims if not any(part.outcome for part in claim.verdict.parts)]
    alone = [verdict for verdict in whole if verdict.n]
    assert load_study(report.name, ROOT / "studies").comparisons(results) == len(deciding) + len(alone)


@pytest.mark.parametrize(("scale", "number"), [("", 6), ("profiles/laptop", 12), ("profiles/paper-llama2", 8)])
def test_rivals_that_parameters_list_are_counted(scale, number):
    params, study = load_params(ROOT / scale / "params.yaml"), load_study("baselines", ROOT / "studies")
    assert study.comparisons(Results(study_params(study, params), {}, ROOT)) == number


def test_a_test_that_cannot_be_counted_needs_a_number_in_the_design(tmp_path):
    text = (ROOT / "studies" / "size_and_bits.py").read_text()
    stated = re.search(r", comparisons=.*(?=\)\n)", text)[0]
    (tmp_path / "mine.py").write_text(text.replace(stated, ""))
    with pytest.raises(UserError, match=r"mine\.py: the comparisons of larger-wins cannot be counted.*comparisons="):
        load_study("mine", tmp_path)


def test_margins_are_stated_by_studies_that_claim_no_difference(tmp_path):
    report = run_study("bit_scaling", make_params(bit_scaling_runs(tmp_path, questions=40, seeds=1)), tmp_path)
    assert report.detectable.margin_points is None
    stating = {
        name
        for name in study_names(ROOT / "studies")
        if any(getattr(claim.test, "margin", False) for claim in load_study(name, ROOT / "studies").claims)
    }
    assert stating == {"gamma_masking", "group_size", "kd_temperature", "teacher_size"}


def test_the_share_of_the_worst_tokens_stands_beside_perplexity(tmp_path):
    """Seeds have nats of their own; the table has the mean of their shares."""
    params, shares = make_params(bit_scaling_runs(tmp_path, questions=40, seeds=2)), {}
    for folder in (tmp_path / "runs").iterdir():
        items, record = read_items(folder / "items.csv"), RunScores.read(folder / "scores.json")
        worst = items[items["metric"] == "nll"].rename(columns={"value": "weight", "weight": "value"})
        worst = worst.assign(metric="worst_share", value=worst["weight"] * (0.02 + 0.0001 * (worst.index % 7)))
        shares[folder.name] = worst["value"].sum() / worst["weight"].sum()
        score = record.scores[-1].model_copy(update={"metric": "worst_share", "value": shares[folder.name]})
        record.model_copy(update={"scores": [*record.scores, score]}).write(folder / "scores.json")
        write_items(pd.concat([items, worst[items.columns]]), folder / "items.csv")
    table = study_tables(run_study("bit_scaling", params, tmp_path))["bit_scaling"].frame
    assert list(table)[:2] == ["Perplexity", "Log perplexity from worst 1 % of tokens, %"]
    cell = table.loc["2 bits", "Log perplexity from worst 1 % of tokens, %"]
    assert cell.row.value == pytest.approx((shares["micro-int2-s0"] + shares["micro-int2-s1"]) / 2, rel=1e-4)
    assert re.fullmatch(r"2\.\d \[\d\.\d, \d\.\d\]", str(cell)) and not cell.best


def test_a_missing_study_is_answered_with_those_there_are(tmp_path):
    with pytest.raises(UserError, match=r"no study 'bit_scalling'.* has .*bit_scaling"):
        load_study("bit_scalling", ROOT / "studies")
    (tmp_path / "half.py").write_text("QUESTION = SOURCE = 'x'\n")
    (tmp_path / "_helper.py").write_text("")
    assert study_names(tmp_path) == ["half"]
    with pytest.raises(UserError, match="lacks Params, CLAIMS, DESIGN"):
        load_study("half", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": {3: ["a"], 2: ["b"]}}, "bits lacks 1"),
        ({"bits": {3: ["a"], 2: ["b"], 1: ["c", "d"]}}, "same number of runs"),
        ({"random": []}, r"studies\.bit_scaling\.random"),
        ({"full": {"full precision": ["elsewhere"]}}, "names elsewhere, not found in runs, baselines or ptq"),
        ({"colour": "blue"}, r"studies\.bit_scaling\.colour"),
    ],
)
def test_wrong_parameters_are_refused_by_name(tmp_path, change, message):
    section = bit_scaling_runs(tmp_path, questions=20)
    params = make_params(section)
    params = params.model_copy(update={"studies": {"bit_scaling": section | change}})
    with pytest.raises(UserError, match=message):
        study_params(load_study("bit_scaling", ROOT / "studies"), params)


def test_a_missing_run_and_a_stale_one_are_refused(tmp_path):
    params = make_params(bit_scaling_runs(tmp_path, questions=50))
    folder = tmp_path / "runs" / "micro-int2-s0"
    items = folder / "items.csv"
    lines = items.read_text().splitlines()
    items.write_text("\n".join(line.replace(",acc,0", ",acc,1") for line in lines))
    with pytest.raises(UserError, match=r"scores\.json says acc .* score the run again"):
        run_study("bit_scaling", params, tmp_path)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="does not exist; run `dvc repro`"):
        run_study("bit_scaling", params, tmp_path)
    assert not (tmp_path / "studies").exists()


def test_the_perplexity_to_judge_is_named_only_where_it_must_be(tmp_path):
    _, results = results_of(tmp_path, questions=20, seeds=1)
    for named, found in ((PERPLEXITY, PERPLEXITY), (None, PERPLEXITY), ("wikitext", None)):
        chosen = replace(results, params=results.params.model_copy(update={"perplexity": named}))
        if found:
            assert chosen.perplexity_task == found
        else:
            with pytest.raises(UserError, match=f"must name one of {PERPLEXITY}, not wikitext"):
                _ = chosen.perplexity_task
