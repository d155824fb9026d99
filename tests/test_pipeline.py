"""The real pipeline through the real command line: `dvc repro` on a tiny world, reruns, and what stages depend on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bitdistiller.warm import WarmServer
from tests import tiny

ROOT = Path(__file__).parent.parent
# Imported by every stage, and decide no number: texts of errors, checks of parameters (whose values DVC tracks),
# schemas and provenance of results, the command line itself.
PLUMBING = {"__init__", "cli", "config", "errors", "provenance", "results"}


def dvc(folder: Path, *arguments: str, warm: str = "") -> str:
    environment = {**os.environ, "BITDISTILLER_WARM": warm}
    done = subprocess.run(["dvc", *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def pipeline_params(model: Path, text: Path) -> dict:
    """A tiny world with one run at 3, 2 and 1 bits, and the study of them."""
    params = tiny.make_params(model, text, steps=3, validate_every=3)
    params |= {"root": ".", "weights": "bitdistiller/assets.yaml"}
    quantizer, run = params["quantizers"].pop("int2"), params["runs"].pop("student")
    for bits in (3, 2, 1):
        params["quantizers"][f"int{bits}"] = {**quantizer, "bits": bits}
        params["runs"][f"student{bits}"] = {**run, "quantizer": f"int{bits}"}
    params["student_text"] = {"by-student": params["training_text"]["own"] | {"generator": "int2", "sequences": 6}}
    params["data"]["from-student"] = {"teacher": str(model), "training_text": "by-student"}
    params["reasoning"] = {"student2": {"mmlu": {"limit": 2, "shots": 0}, "batch_tokens": 512, "seed": 0}}
    params["ptq"] = {"rounded": {"quantizer": "int2"}}
    params["baselines"]["random"] = {"model": str(model), "weights": "random", "seed": 0}
    params["evaluation"]["tasks"] = {"continuation": {"limit": 8, "shots": 0}}
    bits = {level: [f"student{level}"] for level in (3, 2, 1)}
    params["studies"] = {"bit_scaling": {"full": {"full precision": ["full"]}, "random": ["random"], "bits": bits}}
    return params


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_model):
    """A folder in which the repository's own dvc.yaml has run once: a stage of it cold, the rest from a warm process.

    It has a copy of the code that stages depend on: a .dvcignore speaks for its own folder only, and bytecode that
    Python caches beside the original while this test runs would count as a change.
    """
    folder = tmp_path_factory.mktemp("pipeline")
    text = tiny.make_text(folder / "text.txt")
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder)
    for name in ("bitdistiller", "studies", "reports/templates", "reports/published"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    (folder / "reports" / "scales").mkdir()
    params = pipeline_params(tiny_model, text)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    dvc(folder, "init", "--no-scm", "--quiet")
    with WarmServer(folder / "warm.log") as server:
        dvc(folder, "repro", "baseline@full")
        assert server.wait() is None
        dvc(folder, "repro", warm=server.address)
    assert server.refusals == []
    return folder


def change(folder: Path, edit) -> None:
    params = yaml.safe_load((folder / "params.yaml").read_text())
    edit(params)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def would_run(folder: Path) -> set[str]:
    """Stages that a repro would run, by DVC's own status."""
    return set(json.loads(dvc(folder, "status", "--json")))


def test_one_command_leaves_results_verdicts_and_a_report(world):
    verdicts = json.loads((world / "results" / "studies" / "bit_scaling.json").read_text())
    assert verdicts["claims"]
    page = (world / "reports" / "studies" / "bit_scaling.html").read_text()
    assert "<svg" in page and "http-equiv" not in page
    assert all((world / "reports" / name).exists() for name in ("index.html", "report.md"))
    for name in ("student2", "full", "random", "rounded"):
        scores = json.loads((world / "results" / "runs" / name / "scores.json").read_text())
        assert {score["task"] for score in scores["scores"]} == {"heldout", "continuation"}
        assert (scores["quantized_parameters"] > 0) == (name in ("student2", "rounded"))
    reasoning = json.loads((world / "results" / "runs" / "student2" / "reasoning" / "scores.json").read_text())
    scored = json.loads((world / "results" / "runs" / "student2" / "scores.json").read_text())
    assert reasoning["model_sha256"] == scored["model_sha256"] != scored["original_sha256"]
    assert [score["n"] for score in reasoning["scores"]] == [114, 114]
    written = json.loads((world / "results" / "text" / "by-student.json").read_text())
    assert written["generator"] == "int2" and written["statistics"]["mean_written_tokens"] > 0
    teacher = json.loads((world / "results" / "teachers" / "from-student.json").read_text())
    assert set(teacher["gammas"]) == {"label", "max", "label-with-padding", "max-with-padding"}
    assert not list((world / "artifacts").glob("checkpoints/*"))


def test_up_to_date_tree_runs_nothing(world):
    assert would_run(world) == set()
    assert "Data and pipelines are up to date" in dvc(world, "repro")


def test_metrics_and_plots_are_declared(world):
    metrics = json.loads(dvc(world, "metrics", "show", "--json"))[""]["data"]
    assert metrics["results/runs/student2/metrics.json"]["data"]["heldout"]["perplexity"] > 1
    shown = dvc(world, "plots", "show", "--json")
    assert "student2/train.json" in shown


def test_a_run_s_parameter_reruns_that_run_alone(world):
    original = (world / "params.yaml").read_text()
    change(world, lambda params: params["runs"]["student2"].update(learning_rate=2e-3))
    try:
        assert would_run(world) == {"train@student2", "report"}  # the report prints all parameters
    finally:
        (world / "params.yaml").write_text(original)


def test_a_study_s_parameter_retrains_nothing(world):
    original = (world / "params.yaml").read_text()
    change(world, lambda params: params.update(scale="other"))
    try:
        assert {stage.split("@")[0] for stage in would_run(world)} <= {"study", "report"}
    finally:
        (world / "params.yaml").write_text(original)


def test_bad_input_is_one_sentence_and_keeps_what_there_is(world):
    before = (world / "results" / "runs" / "student2" / "scores.json").read_bytes()
    done = subprocess.run(["bitdistiller", "evaluate", "nobody"], cwd=world, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: runs, ptq, peers or baselines in params.yaml has no entry 'nobody'")
    assert done.stderr.count("\n") == 1
    assert (world / "results" / "runs" / "student2" / "scores.json").read_bytes() == before


SCORING = ["bitdistiller.evaluate.run", "bitdistiller.evaluate.tasks"]
ENTRY_POINTS = {
    "text": ["bitdistiller.data.generate"],
    "student_text": ["bitdistiller.data.generate", "bitdistiller.distill.student"],
    "teacher": ["bitdistiller.distill.teacher"],
    "clip": ["bitdistiller.distill.clipping"],
    "train": ["bitdistiller.distill.trainer"],
    "evaluate": SCORING,
    "baseline": SCORING,
    "ptq": SCORING,
    "instruction_text": ["bitdistiller.reasoning.instruction_text"],
    "reason": [f"bitdistiller.reasoning.{name}" for name in ("run", "humaneval", "gsm8k", "mmlu")],
    "study": ["bitdistiller.analysis.study"],
    "report": ["bitdistiller.report"],
}


@pytest.fixture(scope="module")
def imported() -> dict[str, list[str]]:
    """Files of this package that each stage imports; what they all import from elsewhere is imported once."""
    program = """
import importlib, json, os, sys
import datasets, lm_eval.api.task, matplotlib.pyplot, scipy.stats, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer
for stage, names in json.loads(sys.argv[1]).items():
    if os.fork():
        assert os.wait()[1] == 0, stage
        continue
    for name in names:
        importlib.import_module(name)
    own = [module for name, module in sys.modules.items() if name.partition(".")[0] == "bitdistiller"]
    print(json.dumps([stage, [module.__file__ for module in own if module.__file__]]), flush=True)
    os._exit(0)
"""
    command = [sys.executable, "-c", program, json.dumps(ENTRY_POINTS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("stage", ENTRY_POINTS)
def test_stages_depend_on_all_code_that_they_import(imported, stage):
    modules = [Path(name).relative_to(ROOT) for name in imported[stage]]
    section = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]
    declared = [Path(d.removeprefix("${root}/")) for d in section.get("do", section)["deps"]]
    missing = [
        str(module)
        for module in modules
        if module.stem not in PLUMBING and not any(module == d or d in module.parents for d in declared)
    ]
    assert modules and not missing


@pytest.mark.parametrize("profile", [".", "profiles/laptop", "profiles/paper"])
def test_every_scale_is_the_same_pipeline_with_valid_parameters(profile):
    from bitdistiller.analysis.study import load_study, study_params
    from bitdistiller.config import load_params

    folder = ROOT / profile
    assert (folder / "dvc.yaml").resolve() == ROOT / "dvc.yaml"
    params = load_params(folder / "params.yaml")
    assert (folder / params.root).resolve() == ROOT and (ROOT / params.weights).exists()
    for name in params.studies:
        named = {
            run
            for runs in study_params(load_study(name, ROOT / "studies"), params).conditions().values()
            for run in runs
        }
        assert named <= params.scored
