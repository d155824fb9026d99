"""Trained runs as checkpoints: bit for bit what was trained and evaluated, or nothing is kept."""

import copy
import dataclasses
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from bitdistiller.config import Params
from bitdistiller.distill.clipping import search_model
from bitdistiller.distill.student import load_student
from bitdistiller.distill.trainer import train
from bitdistiller.errors import UserError
from bitdistiller.export import run as run_module
from bitdistiller.export import verify as verify_module
from bitdistiller.export.affine import export_gptq
from bitdistiller.export.native import export_native
from bitdistiller.export.run import export_run
from bitdistiller.export.verify import checkpoint_size, fixed_ids, verify
from bitdistiller.models import load_model
from bitdistiller.quant import bake, make_format, quantizable
from tests import tiny
from tests.export.students import WEIGHTS, logits, student_logits


def test_the_size_of_a_folder_counts_quantized_layers_alone(wide, tmp_path):
    model, tokenizer = wide
    fmt = make_format("int-asym", bits=2, group_size=32)
    export_native(model, tokenizer, fmt, tmp_path / "out")
    size = checkpoint_size(tmp_path / "out", model, fmt)
    assert size.passed and not dataclasses.replace(size, bits_per_weight=1.031 * size.expected).passed
    assert size.expected == 2 + 18 / 32 and size.bits_per_weight == pytest.approx(size.expected, rel=0.01)
    assert size.folder_bytes == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model, tiny_text):
    """Parameters and artifacts of a student that was trained for two steps."""
    folder = tmp_path_factory.mktemp("trained") / "artifacts"
    params = tiny.params(tiny_model, tiny_text, steps=2, validate_every=2)
    tiny.make_teacher(params, folder)
    search_model(params.quantizers["int2"], folder / "clip" / "int2.safetensors")
    train("student", params, folder)
    return params, folder


def test_training_evaluation_and_export_agree_bit_for_bit(trained, tmp_path, monkeypatch):
    params, artifacts = trained
    fresh = []

    def spy(*arguments):
        fresh.append(loaded_logits(*arguments))
        return fresh[-1]

    loaded_logits = verify_module._loaded_logits  # of a process of its own
    monkeypatch.setattr(verify_module, "_loaded_logits", spy)
    lines = export_run("student", params, artifacts, "native", tmp_path / "out", verify_with=sys.executable)
    assert lines[-1].startswith("bit-equal in float32: max |difference| 0 ")
    latent = load_model(str(artifacts / "students" / "student")).model
    evaluated = load_student("student", params, artifacts).model
    bake(evaluated)
    ((found, _),) = fresh
    assert torch.equal(found["logits"], student_logits(latent, make_format("int-asym", bits=2, group_size=20)))
    assert torch.equal(found["logits"], logits(evaluated))
    assert not torch.equal(found["logits"], logits(latent))


def test_learned_scales_are_exported_as_they_were_trained(tiny_model, tiny_text, trained, tmp_path):
    raw = tiny.make_params(tiny_model, tiny_text, steps=2, validate_every=2)
    raw["quantizers"]["int2"] |= {"scales": "learned", "estimator": "clipped"}
    params = Params.model_validate(raw)
    (tmp_path / "teacher").symlink_to(trained[1] / "teacher")
    search_model(params.quantizers["int2"], tmp_path / "clip" / "int2.safetensors")
    train("student", params, tmp_path)
    lines = export_run("student", params, tmp_path, "native", tmp_path / "out", verify_with=sys.executable)
    assert lines[-1].startswith("bit-equal in float32")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(exported), logits(load_student("student", params, tmp_path).model))


def test_the_command_line_exports_a_run(trained, tmp_path, monkeypatch):
    from bitdistiller.cli import app

    params, artifacts = trained
    monkeypatch.chdir(tmp_path)
    (tmp_path / "artifacts").symlink_to(artifacts)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params.model_dump()))
    done = CliRunner().invoke(app, ["export", "student", "--to", "native", "--dtype", "bfloat16"])
    assert done.exit_code == 0, done.output
    where, what, size = done.output.splitlines()
    assert Path(where) == Path("artifacts/export/student-native") and (tmp_path / where / WEIGHTS).exists()
    assert what == "native, int-asym, 2 bits, groups of 20, others bfloat16"
    assert "bits per quantized weight, 1.0" in size
    for arguments, words in [
        (["student", "--to", "onnx"], "--to takes native, compressed-tensors, gptq, not 'onnx'"),
        (["student", "--to", "native", "--dtype", "int8"], "--dtype takes float32, bfloat16, float16, not 'int8'"),
        (["nobody", "--to", "native"], "has no entry 'nobody'"),
        (["student", "--to", "gptq"], "GPTQ checkpoints have no shorter last group"),
        (["student", "--to", "native", "--verify-python", "nowhere/python"], "cannot be started"),
    ]:
        done = CliRunner().invoke(app, ["export", *arguments])
        assert isinstance(done.exception, UserError) and words in str(done.exception)
    assert load_file(tmp_path / where / WEIGHTS)["model.norm.weight"].dtype == torch.bfloat16  # the first, not the last


def test_a_student_that_was_not_trained(trained, tmp_path):
    with pytest.raises(UserError, match="bitdistiller train student"):
        export_run("student", trained[0], tmp_path, "native")


def test_verification_notices_other_weights(trained, tmp_path, monkeypatch):
    params, artifacts = trained

    def spoiled(model, *arguments):
        first = next(iter(quantizable(model).values()))
        changed = copy.deepcopy(model)
        next(iter(quantizable(changed).values())).weight.data = -first.weight.data
        export_native(changed, *arguments)

    monkeypatch.setitem(run_module.CONTAINERS, "native", spoiled)
    with pytest.raises(UserError, match=r"does not compute what the student computes.*: .*rounding explains 0"):
        export_run("student", params, artifacts, "native", tmp_path / "out", verify_with=sys.executable)
    assert not any(tmp_path.iterdir())


def _differs(patch):
    wrong = verify_module.Comparison("float32", 1.0, 2.0, 0.0, bit_equal=False)
    patch.setattr(run_module, "verify", lambda *arguments: [wrong])


def _is_large(patch):
    patch.setattr(verify_module.Size, "passed", property(lambda size: False))


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize(
    "python, spoil, words",
    [
        (sys.executable, _differs, "does not compute what the student computes and was not kept"),
        (sys.executable, _is_large, "larger than its format says and was not kept"),
        ("nowhere/python", None, "cannot be started"),
        ("missing", None, "No module named 'transformers'"),
        ("broken", None, "could not be loaded by .*broken: it said nothing"),
    ],
)
def test_what_fails_verification_is_not_kept_and_what_was_there_is(
    python, spoil, words, earlier, trained, tmp_path, monkeypatch
):
    params, artifacts = trained
    for name, says in [("missing", "missing: No module named 'transformers'"), ("broken", "")]:
        (tmp_path / name).write_text(f'#!/bin/sh\nprintf "%s" "{says}" >&2\nexit 1\n')
        (tmp_path / name).chmod(0o755)
    if earlier:
        export_run("student", params, artifacts, "native", tmp_path / "out", "bfloat16")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    if spoil:
        spoil(monkeypatch)
    python = python if "/" in python else str(tmp_path / python)
    with pytest.raises(UserError, match=words) as caught:
        export_run("student", params, artifacts, "native", tmp_path / "out", verify_with=python)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "missing", *["out"] * earlier]


@pytest.mark.parametrize("spoiled", [False, True])
def test_rounding_to_16_bits_does_not_hide_other_weights(spoiled, wide, tmp_path, monkeypatch):
    model, tokenizer = wide
    fmt, dtype = make_format("int-asym", bits=4, group_size=32), torch.bfloat16
    export_native(model, tokenizer, fmt, tmp_path / "out", dtype)
    packed = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    if spoiled:  # by one step of bf16
        layer = packed.model.layers[1].mlp.down_proj.weight.data
        layer[0] *= 1 + 2**-7
    ids = fixed_ids(model)
    found = {"logits": logits(packed, ids).float()}
    found["logits_fp32"] = logits(torch.nn.Module.float(packed), ids)
    monkeypatch.setattr(verify_module, "_loaded_logits", lambda *arguments: (found, "another torch"))
    exact, rounded = verify("native", tmp_path / "out", copy.deepcopy(model), fmt, dtype)
    assert rounded.passed and rounded.bit_equal != spoiled
    assert exact.passed == exact.bit_equal == (not spoiled)


def test_verification_without_the_software_says_what_to_install(wide, tmp_path):
    model, tokenizer = wide
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho \"missing: No module named 'gptqmodel'\" >&2\nexit 1\n")
    bare.chmod(0o755)
    fmt = make_format("int-asym", bits=2, group_size=32)
    export_gptq(model, tokenizer, fmt, tmp_path / "out")
    with pytest.raises(UserError, match=r"No module named 'gptqmodel'.*it needs gptqmodel==7\.6\.0") as caught:
        verify("gptq", tmp_path / "out", copy.deepcopy(model), fmt, torch.float16, str(bare))
    assert "\n" not in str(caught.value)
