"""Every claim of every study, driven to each of its outcomes by synthetic results.

``CASES`` says for every claim what has to be true of which condition so that the claim is supported, contradicted and
undecided: overrides of ``Truth`` by the labels of conditions, of ``Confidence`` by data sets (``synthetic.write_study``
says what may stand there). What is not overridden follows from the study's own part of ``params.yaml``. The outcome is
the one the report would print: from files, through the real schema, all claims of the study corrected together.

A new study needs its lines in ``CASES``; the first test says so until they are there.
"""

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from bitdistiller.analysis.study import Results, judge, load_results, load_study, run_study, study_names, study_params
from bitdistiller.analysis.verdict import JudgedClaim, family_wise
from bitdistiller.config import Params, load_params
from bitdistiller.errors import UserError
from bitdistiller.report.curves import training_curves
from bitdistiller.report.figures import comparison_figures
from bitdistiller.report.tables import runs, study_tables
from bitdistiller.results import CurvePoint
from tests.synthetic import ROOT, Truth, make_training, write_study

OUTCOMES = ("supported", "contradicted", "undecided")
SCALES = {"micro": ROOT, "laptop": ROOT / "profiles" / "laptop", "paper": ROOT / "profiles" / "paper"}
PUBLISHED = ROOT / "reports" / "published"

NOISY = {"scatter": 0.4}
NEITHER = {"students": NOISY}  # all students of equal bits alike, and too noisy to tell


def by_bits(steps: dict[str, tuple[float, float]]) -> dict[str, dict]:
    return {label: {"accuracy": accuracy, "perplexity": ppl} for label, (accuracy, ppl) in steps.items()}


AHEAD = {"BitDistiller, 3 bits": {"perplexity": 31.0}, "BitDistiller, 2 bits": {"perplexity": 38.0}}
STEEP = by_bits({"3 bits": (0.53, 34.0), "2 bits": (0.46, 45.0), "1 bit": (0.25, 1500.0)})

CASES: dict[str, dict[str, dict[str, dict]]] = {
    "bit_scaling": {
        "monotone": {
            "supported": STEEP,
            "contradicted": STEEP | {"3 bits": {"accuracy": 0.4}},
            "undecided": STEEP | {"3 bits": {"accuracy": 0.60}},
        },
        "keeps-most": {
            "supported": STEEP | {"2 bits": {"accuracy": 0.52}},
            "contradicted": STEEP | {"2 bits": {"accuracy": 0.30}},
            "undecided": STEEP | {"2 bits": {"accuracy": 0.43}},
        },
        "one-bit-chance": {
            "supported": STEEP | {"1 bit": {"accuracy": 0.25}},
            "contradicted": STEEP | {"1 bit": {"accuracy": 0.35}},
            "undecided": STEEP | {"full precision": {"accuracy": 0.33}, "1 bit": {"accuracy": 0.25}},
        },
        "one-bit-perplexity": {
            "supported": STEEP,
            "contradicted": STEEP | {"1 bit": {"perplexity": 300.0}},
            "undecided": STEEP | {"1 bit": {"perplexity": 450.0, "scatter": 0.4}},
        },
    },
    "objectives": {
        "ends-better": {
            "supported": {"CAKLD": {"perplexity": 36.0}},
            "contradicted": {"CAKLD": {"perplexity": 36.0}, "JSD": {"perplexity": 33.0}},
            "undecided": {"CAKLD": {"perplexity": 36.0}, "JSD": {"perplexity": 36.0, **NOISY}},
        },
        "converges-faster": {
            "supported": {"CAKLD": {"start": 2.0}},
            "contradicted": {"CAKLD": {"start": 2.0}, "JSD": {"start": 1.5}},
            "undecided": {"CAKLD": {"training": {"curve": []}}},
        },
        "ends-closer": {
            "supported": {"CAKLD": {"kl": 0.2}},
            "contradicted": {"CAKLD": {"kl": 0.2}, "TSLD": {"kl": 0.1}},
            "undecided": {"CAKLD": {"kl": 0.2}, "TSLD": {"kl": 0.2, **NOISY}},
        },
    },
    "one_bit_collapse": {
        "distillation-fails": {
            "supported": {f"{grid}, 1 bit, no teacher": {"perplexity": 500.0} for grid in ("INT-Asym", "binary")},
            "contradicted": {"binary, 1 bit, no teacher": {"perplexity": 900.0}},
            "undecided": NEITHER,
        },
        "collapses-on-every-grid": {
            "supported": {},
            "contradicted": {"binary, 1 bit": {"perplexity": 150.0}},
            "undecided": {"binary, 1 bit": {"perplexity": 430.0, **NOISY}},
        },
        "the-grid-fails": {
            "supported": {f"{grid}, 1 bit": {"perplexity": 150.0} for grid in ("binary", "binary-shifted")},
            "contradicted": {"binary, 1 bit": {"perplexity": 900.0}},
            "undecided": NEITHER,
        },
    },
    "clipping": {
        "needed-at-2-bits": {
            "supported": {"2 bits, none": {"perplexity": 60.0}},
            "contradicted": {"2 bits, none": {"perplexity": 36.0}},
            "undecided": NEITHER,
        },
        "asymmetric": {
            "supported": {"2 bits, symmetric": {"perplexity": 46.0}, "3 bits, symmetric": {"perplexity": 37.0}},
            "contradicted": {"2 bits, symmetric": {"perplexity": 38.0}, "3 bits, symmetric": {"perplexity": 37.0}},
            "undecided": NEITHER,
        },
    },
    "formats": {
        "nf-at-3-bits": {
            "supported": {"NF-Asym, 3 bits": {"perplexity": 31.0}},
            "contradicted": {"NF-Asym, 3 bits": {"perplexity": 37.0}},
            "undecided": NEITHER,
        },
        "int-at-2-bits": {
            "supported": {"NF-Asym, 2 bits": {"perplexity": 46.0}},
            "contradicted": {"NF-Asym, 2 bits": {"perplexity": 38.0}},
            "undecided": NEITHER,
        },
    },
    "baselines": {
        "beats-its-table": {
            "supported": AHEAD | {"AutoRound, 2 bits": {"perplexity": 36.0}},
            "contradicted": AHEAD | {"GPTQ, 2 bits": {"perplexity": 36.0}},
            "undecided": NEITHER,
        },
        "beats-others": {
            "supported": AHEAD | {"GPTQ, 2 bits": {"perplexity": 36.0}},
            "contradicted": AHEAD | {"AutoRound, 2 bits": {"perplexity": 36.0}},
            "undecided": NEITHER,
        },
    },
    "size_and_bits": {
        "larger-wins": {  # 1 bit of the medium model fits into the small one, 4 bits of the large into the medium one
            "supported": {"3m, 1 bit": {"perplexity": 25.0}, "6m, 4 bits": {"perplexity": 25.0}},
            "contradicted": {},
            "undecided": {"3m, 1 bit": {"perplexity": 30.0, **NOISY}, "6m, 4 bits": {"perplexity": 25.0}},
        },
    },
    "cost": {
        "little-data": {
            "supported": {"BitDistiller, 2 bits": {"perplexity": 32.0}},
            "contradicted": {"BitDistiller, 2 bits": {"perplexity": 41.0}},
            "undecided": {"BitDistiller, 2 bits": {"perplexity": 35.5, **NOISY}},
        },
    },
    "teacher_size": {
        "no-gain": {
            "supported": {},
            "contradicted": {"small by large": {"accuracy": 0.58}},
            "undecided": NEITHER,
        },
        "larger-lowers-perplexity": {
            "supported": {f"{pair} by large": {"perplexity": 36.0} for pair in ("small", "medium")}
            | {"small by medium": {"perplexity": 38.0}},
            "contradicted": {f"{pair} by large": {"perplexity": 46.0} for pair in ("small", "medium")},
            "undecided": NEITHER,
        },
    },
    "vocabulary_mismatch": {
        "perplexity-collapses": {
            "supported": {"another vocabulary": {"perplexity": 50_000.0}},
            "contradicted": {"another vocabulary": {"perplexity": 90.0}},
            "undecided": {"another vocabulary": {"perplexity": 430.0, **NOISY}},
        },
        "accuracy-collapses": {
            "supported": {"another vocabulary": {"accuracy": 0.25}},
            "contradicted": {"another vocabulary": {"accuracy": 0.45}},
            "undecided": {"another vocabulary": {"accuracy": 0.34}},
        },
    },
    "teacher_data": {
        "teacher-generated-best": {
            "supported": {"text by the teacher": {"perplexity": 38.0}},
            "contradicted": {"text by the teacher": {"perplexity": 38.0}, "corpus text": {"perplexity": 35.0}},
            "undecided": NEITHER,
        },
        "larger-text-lowers-perplexity": {
            "supported": {f"text by a {size} model": {"perplexity": 36.0} for size in ("medium", "large")},
            "contradicted": {"text by a large model": {"perplexity": 45.0}},
            "undecided": {"text by a large model": {"perplexity": 36.0}, "text by a medium model": NOISY},
        },
    },
    "gamma_masking": {
        "raises-gamma": {
            "supported": {},
            "contradicted": {"teachers": {"raised": -0.03}},
            "undecided": {"teachers": {"raised": 0.0}},
        },
        "by-the-printed-percentage": {
            "supported": {},
            "contradicted": {"teachers": {"raised": 0.12}},
            "undecided": {"teachers": {"spread": 0.08}},
        },
        "no-difference-to-the-student": {
            "supported": {},
            "contradicted": {"label probability, with padding": {"perplexity": 50.0}},
            "undecided": {"label probability, with padding": NOISY},
        },
    },
    "kd_temperature": {
        "temperature-makes-no-difference": {
            "supported": {},
            "contradicted": {"CE + CAKLD, T = 20": {"accuracy": 0.4}},
            "undecided": {"CE + CAKLD, T = 5": NOISY},
        },
        "cross-entropy-makes-no-difference": {
            "supported": {},
            "contradicted": {"CAKLD alone": {"perplexity": 36.0}},
            "undecided": {"CAKLD alone": NOISY},
        },
    },
    "reasoning_and_code": {
        "solves-more-than-rounding": {
            "supported": {"RTN, 2 bits": {"solved": 0.3}},
            "contradicted": {"BitDistiller, 2 bits": {"solved": 0.3}},
            "undecided": {"full precision": {"solved": 0.0}},
        },
        "likelier-than-rounding": {
            "supported": {"BitDistiller, 2 bits": {"bits": 0.5}},
            "contradicted": {"BitDistiller, 2 bits": {"bits": 0.7}},
            "undecided": NEITHER,
        },
        "loses-more-than-text": {
            "supported": {"BitDistiller, 2 bits": {"bits": 0.8}},
            "contradicted": {},
            "undecided": {"BitDistiller, 2 bits": {"bits": 0.66, **NOISY}},
        },
    },
    "group_size": {
        "smaller-lowers-perplexity": {
            "supported": {"1 bit, groups of 32": {"perplexity": 400.0}, "1 bit, groups of 128": {"perplexity": 1500.0}},
            "contradicted": {"1 bit, groups of 32": {"perplexity": 900.0}},
            "undecided": {"1 bit, groups of 32": {"perplexity": 400.0}, "1 bit, groups of 128": NOISY},
        },
        "accuracy-does-not-rise": {
            "supported": {},
            "contradicted": {"1 bit, groups of 32": {"accuracy": 0.4}},
            "undecided": NEITHER,
        },
    },
}


@pytest.fixture(autouse=True, scope="module")
def _imports_out_of_the_collector() -> Iterator[None]:
    """Holm's correction in statsmodels collects garbage; over all that torch imports, that is most of a test here."""
    gc.freeze()
    yield
    gc.unfreeze()


@cache
def scale(name: str) -> Params:
    return load_params(SCALES[name] / "params.yaml")


@cache
def home(study_name: str) -> str:
    """The smallest scale that has a study with all that its claims are about."""
    return "laptop" if study_name == "baselines" else next(name for name in SCALES if study_name in scale(name).studies)


def synthetic(study_name: str, folder: Path, overrides: dict | None = None, scale_name: str | None = None):
    """The study, and its results as if the overrides were true."""
    params = scale(scale_name or home(study_name))
    study = load_study(study_name, ROOT / "studies")
    chosen = study_params(study, params)
    write_study(folder, params, chosen, overrides)
    return study, load_results(chosen, folder, PUBLISHED)


def judged(study, results: Results) -> dict[str, JudgedClaim]:
    return {claim.id: claim for claim in family_wise([judge(claim, results) for claim in study.claims])}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory) -> Callable[..., dict[str, JudgedClaim]]:
    """A study's judged claims under some overrides; cases that share these are computed once."""
    found = {}

    def of(name: str, overrides: dict | None = None, scale_name: str | None = None) -> dict[str, JudgedClaim]:
        key = repr((name, overrides or {}, scale_name))
        if key not in found:
            found[key] = judged(*synthetic(name, tmp_path_factory.mktemp(name), overrides, scale_name))
        return found[key]

    return of


@pytest.mark.parametrize("name", study_names(ROOT / "studies"))
def test_every_claim_of_every_study_has_a_case_for_each_outcome(name):
    assert any(name in scale(s).studies for s in SCALES), f"studies/{name}.py has no part in any params.yaml"
    cases = CASES.get(name, {})
    claims = [claim.id for claim in load_study(name, ROOT / "studies").claims]
    missing = [f"{claim} {outcome}" for claim in claims for outcome in OUTCOMES if outcome not in cases.get(claim, {})]
    assert not missing, f"CASES[{name!r}] in {__file__} lacks: {', '.join(missing)}"
    assert set(cases) <= set(claims), f"CASES[{name!r}] has claims that studies/{name}.py has not"


def test_no_case_is_of_a_study_that_is_gone():
    assert set(CASES) <= set(study_names(ROOT / "studies"))


@pytest.mark.parametrize(
    ("name", "claim_id", "outcome"),
    [(name, claim, outcome) for name, claims in CASES.items() for claim, cases in claims.items() for outcome in cases],
)
def test_every_claim_reaches_every_outcome(verdicts, name, claim_id, outcome):
    verdict = verdicts(name, CASES[name][claim_id][outcome])[claim_id].verdict
    assert verdict.outcome == outcome, f"{verdict.explanation} {[(p.text, p.outcome, p.p) for p in verdict.parts]}"
    assert verdict.effect is None or verdict.low <= verdict.effect <= verdict.high
    if outcome == "undecided":
        assert verdict.needs, "an undecided claim has to say what would decide it"


@pytest.mark.parametrize("name", study_names(ROOT / "studies"))
def test_published_numbers_are_in_a_unit_of_their_claims_comparisons(verdicts, name):
    for claim in verdicts(name).values():
        units = {part.unit for part in claim.verdict.parts if part.outcome} or {claim.verdict.unit}
        assert {number.unit for number in claim.published} <= units, claim.id


@pytest.mark.parametrize(("scale_name", "name"), [(s, name) for s in SCALES for name in scale(s).studies])
def test_every_study_of_every_scale_makes_its_table_and_figures(tmp_path, scale_name, name):
    synthetic(name, tmp_path, scale_name=scale_name)
    report = run_study(name, scale(scale_name).model_copy(update={"root": str(ROOT)}), tmp_path)
    figures = (load_study(name, ROOT / "studies").figures or comparison_figures)(report) | training_curves(report)
    assert report.rows and figures
    for drawing in figures.values():
        drawing.figure.draw_without_rendering()


def test_benchmarks_of_reasoning_have_tables_of_their_own(tmp_path):
    """Scores beside likelihoods, best student in bold; categories of MMLU above their subjects; no chance for text."""
    synthetic("reasoning_and_code", tmp_path, {"BitDistiller, 2 bits": {"solved": 0.5, "bits": 0.5}})
    params = scale("laptop").model_copy(update={"root": str(ROOT)})
    found = study_tables(run_study("reasoning_and_code", params, tmp_path))
    scores = found["reasoning_and_code-benchmarks"].frame
    assert list(scores) == [
        "MMLU, %",
        "GSM8K, %",
        "HumanEval pass@1, %",
        "GSM8K solutions, bits a byte",
        "HumanEval solutions, bits a byte",
    ]
    assert {name for name in scores.index if scores.loc[name, "GSM8K, %"].best} == {"BitDistiller, 2 bits"}
    assert scores.loc["BitDistiller, 2 bits", "HumanEval solutions, bits a byte"].best
    assert str(scores.loc["full precision", "GSM8K solutions, bits a byte"]).startswith("0.600 [")
    subjects = found["reasoning_and_code-subjects"].frame
    assert list(subjects.index) == ["other", "stem", "other/law", "stem/algebra"]
    assert subjects.loc["stem", "full precision"].row.n == 150
    printed = found["reasoning_and_code-published"].frame
    assert printed.loc["WizardCoder 7B (BitDistiller), BitDistiller, 2 bits", "HumanEval pass@1, %"].value == 36.59
    assert (
        "GSM8K, %" not in found["reasoning_and_code"].frame
        and len(found["reasoning_and_code-tasks"].frame) == len(scores) + 1
    )


def test_a_study_of_reasoning_asks_for_all_its_scores_before_anything_runs():
    params, study = scale("laptop"), load_study("reasoning_and_code", ROOT / "studies")
    without = {name: asked for name, asked in params.reasoning.items() if name != "rtn2"}
    with pytest.raises(UserError, match=r"HumanEval of rtn2; ask for all three in reasoning\.rtn2"):
        study_params(study, params.model_copy(update={"reasoning": without}))
    partly = params.reasoning | {"rtn2": params.reasoning["rtn2"].model_copy(update={"mmlu": None})}
    with pytest.raises(UserError, match=r"ask for all three in reasoning\.rtn2"):
        study_params(study, params.model_copy(update={"reasoning": partly}))


def test_a_study_of_reasoning_sees_what_its_fewest_items_show(tmp_path):
    synthetic("reasoning_and_code", tmp_path)
    report = run_study("reasoning_and_code", scale("laptop").model_copy(update={"root": str(ROOT)}), tmp_path)
    assert report.detectable.assumptions.startswith("paired items worth 100 of one task")
    assert {summary.reasoning is not None for summary in report.runs} == {True}


def test_scores_of_other_weights_are_refused(tmp_path):
    synthetic("reasoning_and_code", tmp_path)
    path = tmp_path / "runs" / "int2" / "reasoning" / "scores.json"
    path.write_text(path.read_text().replace("0" * 64, "1" * 64))
    with pytest.raises(UserError, match=r"int2: scores.json and reasoning/scores.json are of different weights"):
        run_study("reasoning_and_code", scale("laptop").model_copy(update={"root": str(ROOT)}), tmp_path)


def test_one_data_set_cannot_decide_about_data_sets(verdicts):
    """Its change is told, and what would decide."""
    others = scale("laptop").studies["gamma_masking"]["teachers"][1:]
    without = {name: {"padding": 0.0} for name in others}
    verdict = verdicts("gamma_masking", without, scale_name="laptop")["raises-gamma"].verdict
    assert (verdict.outcome, verdict.needs) == ("undecided", "two data sets or more")
    assert "% in the only data set" in verdict.explanation


def test_the_padding_that_gives_a_change_is_found_in_the_gammas(verdicts):
    """Padding of 5 % that lowers every gamma by 5.54 % would be the answer; at twice the padding it is twice that."""
    for padding in (0.05, 0.1):
        steady = {"teachers": {"padding": padding, "raised": 0.0554, "spread": 0.0001}}
        beside = verdicts("gamma_masking", steady)["by-the-printed-percentage"].verdict.parts[-1]
        assert beside.outcome is None and beside.effect == pytest.approx(padding, rel=0.01)


def test_methods_that_were_not_run_decide_nothing(verdicts):
    claims = verdicts("baselines", AHEAD, scale_name="micro")
    assert claims["beats-its-table"].verdict.outcome == "supported"
    other = claims["beats-others"].verdict
    assert (other.outcome, other.effect) == ("undecided", None) and "make peers" in other.needs


def test_what_was_not_run_does_not_stand_beside_a_claim(tmp_path):
    study, results = synthetic("one_bit_collapse", tmp_path, scale_name="micro")
    parts = judged(study, results)["collapses-on-every-grid"].verdict.parts
    without = {name: runs for name, runs in results.params.runs.items() if "not clipped" not in name}
    fewer = replace(results, params=results.params.model_copy(update={"runs": without}))
    left = judged(study, fewer)["collapses-on-every-grid"].verdict.parts
    assert [part.description for part in parts if "not clipped" not in part.description] == [
        part.description for part in left
    ]
    assert len(left) == len(parts) - 1


def test_validations_are_those_that_resumed_runs_share_with_others():
    record = make_training("any", Truth(0.5, 40.0), seed=0)
    extra = CurvePoint(step=33, validation_perplexity=50.0, validation_nll=[1.0])
    resumed = record.model_copy(update={"curve": [*record.curve, extra]})
    assert resumed.validations == record.validations
    assert [point.step for point in record.validations] == [0, 10, 20, 30, 40, 50, 60]


def test_data_sets_without_padding_do_not_count(tmp_path):
    study, results = synthetic("gamma_masking", tmp_path)
    full = [name for name, record in results.teachers.items() if not record.padding]
    assert full == ["1m-reads-corpus"]
    part = judged(study, results)["raises-gamma"].verdict
    assert part.n == len(results.teachers) - len(full)


def cost_report(folder: Path, overrides: dict | None = None, clipped: bool = True):
    """The study of costs, with or without the condition that is clipped and not trained."""
    params, condition = scale("micro").model_copy(update={"root": str(ROOT)}), {"clipping, 2 bits": ["1m-clip2"]}
    section = params.studies["cost"]
    runs = {label: names for label, names in section["runs"].items() if label not in condition}
    section = section | {"runs": runs | condition if clipped else runs}
    params = params.model_copy(update={"studies": {"cost": section}})
    study = load_study("cost", ROOT / "studies")
    write_study(folder, params, study_params(study, params), overrides)
    return study, run_study("cost", params, folder)


def test_printed_costs_stand_beside_ours_in_a_table_of_their_own(tmp_path):
    _, report = cost_report(tmp_path)
    printed = study_tables(report)["cost-published"].frame
    assert list(printed) == ["Training samples", "GPU hours"]
    assert printed.loc["LLaMA-2-7B (BitDistiller), BitDistiller", "Training samples"].value == 2000
    hours = {name: cell.value for name, cell in printed["GPU hours"].items() if str(cell) != "–"}
    assert [name for name in hours if "EfficientQAT table 9" in name] == list(hours)[1:]
    assert [name for name in hours if "A100" in name] == list(hours)[:1]
    measured = study_tables(report)["cost"].frame
    assert not set(printed) & set(measured) and "Training tokens" in measured


def test_energy_that_was_not_read_is_said_to_be_unknown(tmp_path):
    for joules, unknown in ((None, True), (900.0, False)):
        overrides = {"students": {"training": {"cost": {"seconds": 5.0, "peak_bytes": 2**30, "joules": joules}}}}
        study, report = cost_report(tmp_path, overrides)
        assert ("energy of these runs is not known" in study.figures(report)["seconds"].caption) is unknown
        assert ("Energy, J" in study_tables(report)["cost"].frame) is not unknown


def test_a_resumed_run_has_no_time_to_compare(tmp_path):
    _, report = cost_report(tmp_path, {"BitDistiller, 2 bits": {"training": {"resumed_at": 40}}})
    times = study_tables(report)["cost"].frame["Training, s"]
    assert times["BitDistiller, 2 bits"] == "–" != times["BitDistiller, 3 bits"]
    spent = runs(report).set_index("condition")["training"]
    assert spent["BitDistiller, 2 bits"].endswith(" s from step 40") and spent["BitDistiller, 3 bits"].endswith(" s")


def test_what_clipping_alone_wins_back_stands_beside_what_training_wins_back(tmp_path):
    halfway = {"perplexity": 30 * 2**0.5}  # on the logarithm, from RTN's to full precision's
    overrides = {"RTN, 2 bits": {"perplexity": 60.0}, "clipping, 2 bits": halfway}
    overrides |= {"BitDistiller, 2 bits": {"perplexity": 32.0}}
    verdict = cost_report(tmp_path, overrides)[1].claims[0].verdict
    claimed, alone = verdict.parts
    assert (claimed.outcome, alone.outcome) == ("supported", None) and verdict.effect == claimed.effect > alone.effect
    assert abs(alone.effect - 0.5) < 0.02 and alone.description.endswith("by clipping alone")
    overrides.pop("clipping, 2 bits")
    assert cost_report(tmp_path, overrides, clipped=False)[1].claims[0].verdict.parts == []


def test_an_override_that_names_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no condition or teacher 2 bit"):
        synthetic("bit_scaling", tmp_path, {"2 bit": {"accuracy": 0.1}})


def test_a_study_whose_claims_lack_a_condition_is_refused():
    params = scale("micro")
    section = params.studies["kd_temperature"]
    section = section | {"runs": {label: runs for label, runs in section["runs"].items() if label != "CAKLD alone"}}
    with pytest.raises(UserError, match="runs lacks CAKLD alone; the study's claims need them"):
        study_params(
            load_study("kd_temperature", ROOT / "studies"),
            params.model_copy(update={"studies": {"kd_temperature": section}}),
        )
