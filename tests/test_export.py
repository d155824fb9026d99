"""Packed checkpoints: what is loaded computes what was trained, in each container, or nothing is written at all."""

import copy
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from bitdistiller.distill.clipping import search_model
from bitdistiller.distill.trainer import train
from bitdistiller.errors import UserError
from bitdistiller.evaluate.run import _student
from bitdistiller.export import folder as folder_module
from bitdistiller.export import run as run_module
from bitdistiller.export import verify as verify_module
from bitdistiller.export.affine import export_compressed_tensors, export_gptq
from bitdistiller.export.folder import DTYPES
from bitdistiller.export.native import export_native, pack_layer, unpack_layer
from bitdistiller.export.run import export_run
from bitdistiller.export.verify import checkpoint_size, fixed_ids, reference_logits, verify
from bitdistiller.models import load_model
from bitdistiller.quant import FORMATS, bake, learn_scales, make_format, quantizable, quantize_model
from bitdistiller.testing import weights
from tests import tiny

ALL = [(name, bits) for name, fmt in FORMATS.items() for bits in fmt.supported_bits]
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def loaded(tiny_model):
    """The tiny model (width 32, 72 inside) with its tokenizer; tests take a copy."""
    return load_model(str(tiny_model))


@pytest.fixture(scope="module")
def wide(loaded):
    """A model that other containers hold too: multiples of 32, biases, a head of its own."""
    config = LlamaConfig(
        vocab_size=334, hidden_size=64, num_hidden_layers=2, intermediate_size=96, num_attention_heads=2,
        max_position_embeddings=128, tie_word_embeddings=False, attention_bias=True, initializer_range=0.2,
        bos_token_id=0, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    for layer in quantizable(model).values():
        if layer.bias is not None:
            torch.nn.init.normal_(layer.bias)
    return model, loaded.tokenizer


@torch.no_grad()
def logits(model, ids=None):
    return model(input_ids=fixed_ids(model) if ids is None else ids).logits


def student_logits(model, fmt):
    """Logits of the model under fake quantization, as in training."""
    student = copy.deepcopy(model)
    quantize_model(student, fmt)
    return logits(student)


@pytest.mark.parametrize("name, bits", ALL)
def test_native_folders_load_with_the_students_logits(name, bits, loaded, tmp_path):
    fmt = make_format(name, bits=bits, group_size=20)  # which divides neither 32 nor 72
    export_native(loaded.model, loaded.tokenizer, fmt, tmp_path / "out")
    packed = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert packed.dtype == torch.float32
    assert torch.equal(logits(packed), student_logits(loaded.model, fmt))
    assert not torch.equal(logits(packed), logits(loaded.model))
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config == {"quant_method": "bitdistiller", "format": name, "bits": bits, "group_size": 20}


@pytest.mark.parametrize("name", DTYPES)
def test_biases_untied_heads_and_dtypes(name, wide, tmp_path):
    model, tokenizer = wide
    fmt, dtype = make_format("nf-asym", bits=3, group_size=40), DTYPES[name]
    export_native(model, tokenizer, fmt, tmp_path / "out", dtype)
    packed = load_file(tmp_path / "out" / WEIGHTS)
    assert packed["lm_head.weight"].dtype == packed["model.layers.0.self_attn.q_proj.bias"].dtype == dtype
    student = copy.deepcopy(model)
    quantize_model(student, fmt)
    bake(student)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.dtype == dtype
    wanted = reference_logits(student, dtype, fixed_ids(model), dtype)
    assert torch.equal(logits(again).float(), wanted)
    assert torch.equal(wanted, student_logits(model, fmt)) == (dtype == torch.float32)


def test_tied_weights_are_stored_once_and_what_is_loaded_is_an_ordinary_model(loaded, tmp_path):
    export_native(loaded.model, loaded.tokenizer, make_format("binary", bits=1, group_size=16), tmp_path / "out")
    assert "lm_head.weight" not in load_file(tmp_path / "out" / WEIGHTS)
    packed = load_model(str(tmp_path / "out"))
    assert type(packed.model.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert packed.model.lm_head.weight is packed.model.model.embed_tokens.weight
    assert packed.tokenizer.get_vocab() == loaded.tokenizer.get_vocab()
    packed.model.save_pretrained(tmp_path / "dense")
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert torch.equal(logits(dense), logits(packed.model))


@pytest.mark.parametrize("name, bits", [("int-asym", 3), ("seq", 2), ("seq-ternary", 2)])
def test_learned_scales_are_exported_as_they_were_learned(name, bits, loaded, tmp_path):
    model, fmt = copy.deepcopy(loaded.model), make_format(name, bits=bits, group_size=20)
    for layer in quantizable(model).values():
        learn_scales(layer, fmt)
        layer.scale.data *= 1.1
    export_native(model, loaded.tokenizer, fmt, tmp_path / "out")
    packed = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(packed), logits(model))
    assert not torch.equal(logits(packed), student_logits(loaded.model, fmt))


@given(weights(max_rows=5, max_columns=70), st.sampled_from(ALL), st.sampled_from([1, 7, 20, 64, 100]))
def test_a_packed_layer_is_the_layer(w, name_and_bits, group_size):
    name, bits = name_and_bits
    fmt = make_format(name, bits=bits, group_size=group_size)
    q = fmt.quantize(w)
    tensors = pack_layer(q)
    again = unpack_layer(tensors, fmt, w.shape[1])
    assert tensors["codes"].dtype == torch.uint8 and set(tensors) == {"codes", *fmt.stored}
    assert torch.equal(again.codes, q.codes)
    assert all(torch.equal(a, b) for a, b in zip(again.scales, q.scales, strict=True))
    assert torch.equal(again.dequantize().view(torch.int32), fmt.round(w).view(torch.int32))  # bits, zeros' signs too


@pytest.mark.parametrize("name, bits", ALL)
@pytest.mark.parametrize("columns, group_size", [(576, 64), (576, 128), (1536, 32)])
def test_sizes_are_what_the_format_says(name, bits, columns, group_size):
    fmt = make_format(name, bits=bits, group_size=group_size)
    w = torch.randn(96, columns, generator=torch.Generator().manual_seed(0))
    stored = 8 * sum(tensor.nbytes for tensor in pack_layer(fmt.quantize(w)).values())
    assert stored == pytest.approx(w.numel() * fmt.bits_per_weight(columns), rel=0.03)


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
    evaluated = _student("student", params, artifacts)[0].model
    ((found, _),) = fresh
    assert torch.equal(found["logits"], student_logits(latent, make_format("int-asym", bits=2, group_size=20)))
    assert torch.equal(found["logits"], logits(evaluated))
    assert not torch.equal(found["logits"], logits(latent))


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


@pytest.mark.parametrize("export", [export_compressed_tensors, export_gptq])
@pytest.mark.parametrize(
    "name, bits, group_size, words",
    [
        ("nf-asym", 3, 32, "not nf-asym; use --to native"),
        ("ternary", 2, 32, "not ternary"),
        ("seq", 2, 32, "not seq"),
        ("binary", 1, 32, "not binary"),
        ("int-asym", 1, 32, "at 2, 3, 4, 8 bits, not 1"),
        ("int-asym", 5, 32, "at 2, 3, 4, 8 bits, not 5"),
        ("int-asym", 2, 64, "no shorter last group: 64 must divide"),
    ],
)
def test_what_other_containers_do_not_hold_is_refused(export, name, bits, group_size, words, wide, tmp_path):
    model, tokenizer = wide
    with pytest.raises(UserError, match=words) as caught:
        export(model, tokenizer, make_format(name, bits=bits, group_size=group_size), tmp_path / "out")
    assert "\n" not in str(caught.value) and not any(tmp_path.iterdir())


def test_gptq_refuses_other_groups_shapes_and_dtypes(wide, loaded, tmp_path):
    model, tokenizer = wide
    with pytest.raises(UserError, match=r"groups of 16, 32, .*, not 8"):
        export_gptq(model, tokenizer, make_format("int-asym", bits=2, group_size=8), tmp_path / "out")
    narrow = LlamaForCausalLM(LlamaConfig(**{**model.config.to_dict(), "intermediate_size": 80}))
    with pytest.raises(UserError, match="needs multiples of 32"):
        export_gptq(narrow, tokenizer, make_format("int-asym", bits=2, group_size=16), tmp_path / "out")
    with pytest.raises(UserError, match="in float16"):
        export_gptq(model, tokenizer, make_format("int-asym", bits=2, group_size=32), tmp_path / "out", torch.bfloat16)
    assert not any(tmp_path.iterdir())


def test_compressed_tensors_without_its_package_is_one_sentence(wide, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    model, tokenizer = wide
    with pytest.raises(UserError, match="bitdistiller\\[export\\]"):
        export_compressed_tensors(
            model, tokenizer, make_format("int-asym", bits=2, group_size=32), tmp_path / "out", torch.float32
        )
    assert not any(tmp_path.iterdir())


def code_in_words(words, index, bits):
    """Code ``index`` of a stream of little-endian 32-bit words, bit by bit: the slow twin of every packed container."""
    positions = range(index * bits, (index + 1) * bits)
    return sum((int(np.uint32(words[p // 32])) >> p % 32 & 1) << i for i, p in enumerate(positions))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("name", ["int-asym", "int-sym"])
def test_gptq_folders_are_of_the_second_layout(name, bits, wide, tmp_path):
    model, tokenizer = copy.deepcopy(wide[0]), wide[1]
    layer = model.model.layers[0].mlp.down_proj  # 64 x 96
    layer.weight.data[:, :32].abs_()  # zero points of 0, which the first layout cannot say
    fmt = make_format(name, bits=bits, group_size=32)
    export_gptq(model, tokenizer, fmt, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert (config["checkpoint_format"], config["sym"], config["desc_act"]) == ("gptq_v2", False, False)
    assert (config["bits"], config["group_size"]) == (bits, 32)
    tensors = load_file(tmp_path / "out" / WEIGHTS)
    stored = {key: tensors[f"model.layers.0.mlp.down_proj.{key}"] for key in ("qweight", "qzeros", "scales", "g_idx")}
    assert stored["qweight"].shape == (96 * bits // 32, 64) and stored["qzeros"].shape == (3, 64 * bits // 32)
    wanted = fmt.round(layer.weight.data)
    zeros = set()
    for row, column in [(0, 0), (5, 10), (17, 21), (63, 31), (40, 32), (63, 95)]:
        group = int(stored["g_idx"][column])
        code = code_in_words(stored["qweight"][:, row].numpy(), column, bits)
        zero = code_in_words(stored["qzeros"][group].numpy(), row, bits)
        zeros.add(zero)
        assert group == column // 32 and stored["scales"].dtype == torch.float16
        assert stored["scales"][group, row].float() * (code - zero) == wanted[row, column]
    assert (0 in zeros) == (name == "int-asym")


@pytest.mark.parametrize("name, bits, dtype", [
    ("int-asym", 2, "float32"), ("int-asym", 3, "float32"), ("int-asym", 4, "bfloat16"), ("int-asym", 8, "float16"),
    ("int-sym", 2, "float32"), ("int-sym", 3, "bfloat16"), ("int-sym", 8, "float32"),
])  # fmt: skip
def test_compressed_tensors_loads_what_was_trained(name, bits, dtype, wide, tmp_path):
    pytest.importorskip("compressed_tensors")
    model, tokenizer = wide
    fmt = make_format(name, bits=bits, group_size=32)
    export_compressed_tensors(model, tokenizer, fmt, tmp_path / "out", DTYPES[dtype])
    student = copy.deepcopy(model)
    quantize_model(student, fmt)
    bake(student)
    packed = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert packed.dtype == DTYPES[dtype]
    wanted = reference_logits(student, DTYPES[dtype], fixed_ids(model), DTYPES[dtype])
    assert torch.equal(logits(packed).float(), wanted)
    tensors = load_file(tmp_path / "out" / WEIGHTS)
    stored = tensors["model.layers.1.mlp.up_proj.weight_packed"]
    assert stored.shape == (96, 64 * bits // 32) and "lm_head.weight" in tensors


def test_compressed_tensors_in_a_fresh_process(wide, tmp_path):
    pytest.importorskip("compressed_tensors")
    model, tokenizer = wide
    fmt = make_format("int-asym", bits=3, group_size=32)
    export_compressed_tensors(model, tokenizer, fmt, tmp_path / "out", torch.float32)
    (found,) = verify("compressed-tensors", tmp_path / "out", copy.deepcopy(model), fmt, torch.float32)
    assert found.bit_equal and found.passed and found.difference == 0


def test_gptqmodel_loads_what_was_trained(wide, tmp_path):
    pytest.importorskip("gptqmodel")
    model, tokenizer = wide
    fmt = make_format("int-asym", bits=3, group_size=32)
    export_gptq(model, tokenizer, fmt, tmp_path / "out")
    exact, rounded = verify("gptq", tmp_path / "out", copy.deepcopy(model), fmt, torch.float16)
    assert exact.bit_equal and exact.passed and rounded.passed


@pytest.mark.parametrize("error", [OSError("No space left"), RuntimeError("a bug")])
def test_a_failed_write_leaves_what_was_there(error, loaded, tmp_path, monkeypatch):
    def failing(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise error

    fmt = make_format("int-asym", bits=2, group_size=32)
    for earlier in (False, True):
        if earlier:
            export_native(loaded.model, loaded.tokenizer, fmt, tmp_path / "out")
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with monkeypatch.context() as patch:
            patch.setattr(folder_module, "save_file", failing)
            with pytest.raises(UserError if isinstance(error, OSError) else RuntimeError, match=str(error)):
                export_native(loaded.model, loaded.tokenizer, fmt, tmp_path / "out")
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        assert bool(before) == earlier and len(list(tmp_path.iterdir())) == earlier


def test_exports_are_replaced_and_nothing_else_is(loaded, tmp_path):
    fmt = make_format("int-asym", bits=2, group_size=32)
    export_native(loaded.model, loaded.tokenizer, fmt, tmp_path / "out")
    (tmp_path / "out" / "stale.safetensors").write_bytes(b"")
    export_native(loaded.model, loaded.tokenizer, make_format("binary", bits=1, group_size=32), tmp_path / "out")
    assert not (tmp_path / "out" / "stale.safetensors").exists() and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    (tmp_path / "file").write_text("text")
    for marker in ("", "{}", "[1]"):
        (tmp_path / "mine" / "bitdistiller.json").write_text(marker)
        for taken in ("mine", "file"):
            with pytest.raises(UserError, match="holds no exported checkpoint"):
                export_native(loaded.model, loaded.tokenizer, fmt, tmp_path / taken)
    assert (tmp_path / "mine" / "config.json").read_text() == "{}"


def test_quantized_models_of_others_are_not_replaced(wide, tmp_path):
    model, tokenizer = wide
    downloaded = {"config.json": '{"quantization_config": {"quant_method": "gptq"}}', WEIGHTS: "weights"}
    for name, text in downloaded.items():
        (tmp_path / name).write_text(text)
    fmt = make_format("int-asym", bits=2, group_size=32)
    for export in (export_native, export_gptq):
        with pytest.raises(UserError, match=r"bitdistiller\.json is missing"):
            export(model, tokenizer, fmt, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == downloaded


@pytest.mark.parametrize("container", run_module.CONTAINERS)
def test_every_container_says_what_it_is_and_replaces_itself(container, wide, tmp_path):
    if container == "compressed-tensors":
        pytest.importorskip("compressed_tensors")
    model, tokenizer = wide
    for bits in (2, 4):
        fmt = make_format("int-asym", bits=bits, group_size=32)
        run_module.CONTAINERS[container](model, tokenizer, fmt, tmp_path / "out", torch.float16)
        marker = json.loads((tmp_path / "out" / "bitdistiller.json").read_text())
        assert set(marker.pop("versions")) == {"bitdistiller", "torch", "transformers"}
        assert marker == {"container": container, "format": "int-asym", "bits": bits, "group_size": 32}


def test_the_working_directory_is_not_replaced_and_links_are_followed(loaded, tmp_path, monkeypatch):
    fmt = make_format("int-asym", bits=2, group_size=32)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out in (".", "..", "../here", "/"):
        with pytest.raises(UserError, match="working directory or holds it and cannot be replaced") as caught:
            export_native(loaded.model, loaded.tokenizer, fmt, Path(out))
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for _ in range(2):
        export_native(loaded.model, loaded.tokenizer, fmt, Path("../link"))
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / WEIGHTS).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "link", "real"]


@pytest.mark.usefixtures("unchecked_shapes")
def test_weights_and_formats_that_cannot_be_exported(loaded, tmp_path):
    class Foreign(FORMATS["int-asym"]):
        name = "foreign"

    with pytest.raises(UserError, match="foreign is not registered"):
        export_native(loaded.model, loaded.tokenizer, Foreign(bits=2, group_size=32), tmp_path / "out")
    broken = copy.deepcopy(loaded.model)
    broken.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match="holds NaN"):
        export_native(broken, loaded.tokenizer, make_format("int-asym", bits=2, group_size=32), tmp_path / "out")
    assert not any(tmp_path.iterdir())


def _truncate(folder):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def _edit(change):
    def damage(folder):
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def _configure(**changes):
    def damage(folder):
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] |= changes
        config["quantization_config"] = {k: v for k, v in config["quantization_config"].items() if v is not None}
        (folder / "config.json").write_text(json.dumps(config))

    return damage


UP = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    "damage, words",
    [
        (_truncate, "incomplete metadata|not fully covered"),
        (_edit(lambda tensors: tensors.pop(f"{UP}.codes")), f"{UP}.codes is missing"),
        (_edit(lambda tensors: tensors.pop(f"{UP}.zero")), f"{UP}.zero is missing"),
        (_edit(lambda tensors: tensors.update({f"{UP}.scale": torch.ones(1, 1).half()})), "has shape .1, 1."),
        (_edit(lambda tensors: tensors.pop("model.norm.weight")), "model.norm.weight"),
        (_configure(bits=3), "at 3 bits with groups of 20 needs"),
        (_configure(group_size=None), "must have quant_method, format, bits, group_size and nothing else"),
        (_configure(version=2), "must have quant_method, format, bits, group_size and nothing else"),
        (_configure(format="int-odd"), "unknown format 'int-odd'"),
        (_configure(bits=11), "has 1 to 8 bits, not 11"),
    ],
)
def test_damaged_folders_are_one_sentence(damage, words, loaded, tmp_path):
    export_native(loaded.model, loaded.tokenizer, make_format("int-asym", bits=2, group_size=20), tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(UserError, match=words) as caught:
        load_model(str(tmp_path / "out"))
    assert "\n" not in str(caught.value)


ENOUGH = """
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
assert "bitdistiller" in AUTO_QUANTIZER_MAPPING and "bitdistiller" in AUTO_QUANTIZATION_CONFIG_MAPPING
bitdistiller.register_with_transformers()
assert "bitdistiller.quant" not in sys.modules  # stages that do not quantize do not depend on it
"""


@pytest.mark.parametrize(
    "imports",
    [
        'import sys, bitdistiller\nassert not {"torch", "transformers", "numpy"} & set(sys.modules)',
        "import sys, transformers.quantizers.auto\nimport bitdistiller",
    ],
)
def test_import_bitdistiller_is_enough_and_imports_nothing_heavy(imports):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", imports + ENOUGH]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
