"""Containers of other software: what they hold computes what was trained, and what they do not hold is refused."""

import copy
import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from bitdistiller.errors import UserError
from bitdistiller.export.affine import export_compressed_tensors, export_gptq
from bitdistiller.export.folder import DTYPES
from bitdistiller.export.verify import fixed_ids, reference_logits, verify
from bitdistiller.quant import bake, make_format, quantize_model
from tests.export.students import WEIGHTS, logits


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
