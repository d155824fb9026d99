"""The native container: what is loaded computes what was trained, and damaged folders are refused in one sentence."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from bitdistiller.errors import UserError
from bitdistiller.export.folder import DTYPES
from bitdistiller.export.native import export_native, pack_layer, unpack_layer
from bitdistiller.export.verify import fixed_ids, reference_logits
from bitdistiller.models import load_model
from bitdistiller.quant import FORMATS, bake, learn_scales, make_format, quantizable, quantize_model
from bitdistiller.testing import weights
from tests.export.students import WEIGHTS, logits, student_logits

ALL = [(name, bits) for name, fmt in FORMATS.items() for bits in fmt.supported_bits]


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
