"""Parameters, results and the command line: what fits is read back unchanged, what does not is one clear sentence."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from bitdistiller.check import check
from bitdistiller.cli import app
from bitdistiller.config import Params, load_params
from bitdistiller.errors import UserError
from bitdistiller.provenance import Stopwatch, environment
from bitdistiller.results import RunScores, Score, TrainingRecord, read_items, write_items
from tests import tiny


@pytest.fixture
def params(tiny_model, tiny_text):
    return tiny.make_params(tiny_model, tiny_text)


INCOMPLETE = {"full": {"full precision": ["full"]}, "random": ["full"], "bits": {3: ["student"]}}


def write(folder, params):
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(params))
    return path


def test_good_parameters_come_back(params, tmp_path):
    assert load_params(write(tmp_path, params)).model_dump(mode="json", exclude_unset=True) == json.loads(
        json.dumps(params)
    )


@pytest.mark.parametrize("edit, words", [
    (lambda p: p["runs"]["student"].update(learning_rat=1), r"runs\.student\.learning_rat: Extra inputs"),
    (lambda p: p["runs"]["student"].pop("seed"), r"runs\.student\.seed: Field required"),
    (lambda p: p["runs"]["student"].update(steps=0), r"runs\.student\.steps: Input should be greater than 0"),
    (lambda p: p["runs"]["student"].update(loss="mse"), r"runs\.student\.loss: Input should be 'cakld'"),
    (lambda p: p["runs"]["student"].update(quantizer="int5"), r"names 'int5', which is not under quantizers"),
    (lambda p: p["runs"]["student"].update(data="none"), r"names 'none', which is not under data"),
    (lambda p: p["quantizers"]["int2"].update(bits=9), r"quantizers\.int2\.bits: .* or equal to 8"),
    (lambda p: p["training_text"]["own"].update(top_p=1.5), r"training_text\.own\.top_p: .* or equal to 1"),
    (lambda p: p["baselines"].update(student=p["baselines"]["full"]), "stands in two of runs"),
])  # fmt: skip
def test_wrong_parameters_are_named_by_their_key(params, tmp_path, edit, words):
    edit(params)
    with pytest.raises(UserError, match=words):
        load_params(write(tmp_path, params))


@pytest.mark.parametrize("edit, words", [
    (lambda p: p["quantizers"]["int2"].update(format="int-asm"), "unknown format 'int-asm'"),
    (lambda p: p["training_text"]["own"].update(text=["wikipedya"]), "unknown text 'wikipedya'"),
    (lambda p: p["baselines"]["full"].update(model="no/such/model/here"), "there is no model"),
    (lambda p: p["studies"].update(nothing={}), "there is no study 'nothing'"),
    (lambda p: p["studies"].update(bit_scaling=INCOMPLETE), "bits"),
])  # fmt: skip
def test_names_that_lead_nowhere_are_found_before_anything_runs(params, tmp_path, edit, words):
    params["root"] = str(Path(__file__).parent.parent)
    check(load_params(write(tmp_path, params)))
    edit(params)
    with pytest.raises(UserError, match=words):
        check(load_params(write(tmp_path, params)))


def test_the_committed_parameters_pass_the_check(monkeypatch):
    root = Path(__file__).parent.parent
    for folder in (root, root / "profiles" / "laptop", root / "profiles" / "paper"):
        monkeypatch.chdir(folder)
        check(load_params())


def test_no_entry_of_the_committed_parameters_is_the_pattern_of_another():
    root = Path(__file__).parent.parent
    for path in [root / "params.yaml", *root.glob("profiles/*/params.yaml")]:
        before, _, after = path.read_text().partition("\ntraining_text:")
        anchors = re.findall(r"^ *([\w.-]+): &([\w.-]+)", before, re.MULTILINE)
        assert anchors and all(key == anchor for key, anchor in anchors)  # under defaults, by the name of their key
        assert "&" not in after


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"does not exist; run from a folder with params\.yaml"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("runs: [")
    with pytest.raises(UserError, match="is not valid YAML"):
        load_params(tmp_path / "params.yaml")


def score(task, metric, value):
    return Score(task=task, metric=metric, value=value, standard_error=0.1, low=0, high=9, n=5, chance=None)


def test_an_entry_of_reasoning_asks_for_something(params):
    params["reasoning"] = {"full": {"batch_tokens": 4096, "seed": 0}}
    with pytest.raises(ValueError, match="asks for none of mmlu, gsm8k and humaneval"):
        Params.model_validate(params)


def run_scores() -> RunScores:
    return RunScores(
        run="r", model="m", origin="o", bits=2, bits_per_weight=2.3, parameters=10, quantized_parameters=6,
        model_sha256="0",
        scores=[score("heldout", "perplexity", 7.5), score("piqa", "acc", 0.6), score("piqa", "acc_norm", 0.7)],
        parameters_used={}, data={}, environment=environment(), cost=Stopwatch().cost(),
    )  # fmt: skip


def test_results_come_back_and_foreign_files_are_refused(tmp_path):
    record = run_scores()
    record.write(tmp_path / "r" / "scores.json")
    assert RunScores.read(tmp_path / "r" / "scores.json") == record
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["scores.json"]
    with pytest.raises(UserError, match="is not a TrainingRecord"):
        TrainingRecord.read(tmp_path / "r" / "scores.json")
    with pytest.raises(UserError, match="does not exist; run `dvc repro`"):
        RunScores.read(tmp_path / "none.json")


def test_metrics_for_dvc_are_the_bare_values():
    assert run_scores().metrics() == {"heldout": {"perplexity": 7.5}, "piqa": {"acc": 0.6, "acc_norm": 0.7}}


def test_items_come_back(tmp_path):
    rows = [("piqa", "7", "acc", 1.0, 1.0), ("heldout", "00ff", "nll", 123.456, 40.0)]
    items = pd.DataFrame(rows, columns=["task", "item", "metric", "value", "weight"])
    write_items(items, tmp_path / "items.csv")
    pd.testing.assert_frame_equal(read_items(tmp_path / "items.csv"), items, check_dtype=False)


def test_environment_and_cost_are_real():
    found, cost = environment(), Stopwatch().cost()
    assert found.cores >= 1 and found.versions["torch"][0].isdigit() and found.python.startswith("3.")
    assert cost.seconds >= 0 and cost.peak_bytes > 10**7


def test_every_command_has_help():
    runner = CliRunner()
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert {"text", "teacher", "train", "evaluate", "study", "report", "verdicts"} <= set(names)
    for name in names:
        shown = runner.invoke(app, [name, "--help"])
        assert shown.exit_code == 0 and len(shown.output.splitlines()) > 5


def test_help_needs_no_heavy_imports():
    program = "import sys, bitdistiller.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
