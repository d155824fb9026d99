"""Models by name: what arrives, what is refused, and random baselines."""

import json
import math
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM

from bitdistiller.errors import UserError
from bitdistiller.models import known_names, load_model, micro, random_model
from bitdistiller.models.micro import MICRO_MODELS, train_tokenizer

SENTENCES = ["The capital of France is Paris.", "In 1999, naïve cafés cost $3.50.\n\n1. first\n 2. second"]


# --- names, folders and what is refused ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def micro_weights(tmp_path_factory):
    """A weights folder as pretraining leaves it, with fp16 random weights under the name micro-1m."""
    root = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    LlamaForCausalLM(MICRO_MODELS["micro-1m"].config()).to(torch.float16).save_pretrained(root / "micro-1m")
    train_tokenizer("bpe", SENTENCES).save_pretrained(root / "micro-1m")
    return root


@pytest.fixture
def folder(micro_weights, tmp_path):
    """A copy that a test may damage."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in (micro_weights / "micro-1m").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def test_a_micro_model_loads_in_fp32_and_evaluation_mode(micro_weights, monkeypatch):
    monkeypatch.setattr(micro, "WEIGHTS_DIR", micro_weights)
    loaded = load_model("micro-1m")
    assert loaded.name == "micro-1m"
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert not loaded.model.training
    assert loaded.tokenizer.pad_token_id != loaded.tokenizer.eos_token_id
    assert "this project" in loaded.origin and "fp16" in loaded.origin
    stored = load_file(micro_weights / "micro-1m" / "model.safetensors")
    for name, weight in stored.items():
        assert torch.equal(loaded.model.state_dict()[name], weight.float())


@pytest.mark.parametrize("load", [load_model, lambda name: random_model(name, 0)], ids=["load", "random"])
def test_a_micro_model_without_weights_says_how_to_get_them(load, monkeypatch, tmp_path):
    monkeypatch.setattr(micro, "WEIGHTS_DIR", tmp_path)
    with pytest.raises(UserError, match=r"micro-3m has no weights in .*make pretrain"):
        load("micro-3m")


def test_a_folder_is_named_in_the_origin(folder):
    assert str(folder) in load_model(str(folder)).origin


@pytest.mark.parametrize("name", ["owner/no-such-model", "no-such-model", "", "a/b/c", "./nowhere", "~/nowhere"])
@pytest.mark.parametrize("load", [load_model, lambda name: random_model(name, 0)], ids=["load", "random"])
def test_an_unknown_name_lists_the_known_ones(load, name):
    with pytest.raises(UserError) as caught:
        load(name)
    assert all(known in str(caught.value) for known in known_names())
    assert "hub" in str(caught.value) and "\n" not in str(caught.value)


def test_only_safetensors_are_read(folder):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        load_model(str(folder))


def test_code_of_a_repository_is_never_run(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "foreign", "auto_map": {"AutoConfig": "foreign.C", "AutoModelForCausalLM": "foreign.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "foreign.py").write_text("raise SystemExit('was run')")
    with pytest.raises(UserError, match="custom code"):
        load_model(str(folder))


def test_a_missing_weight_is_not_filled_with_random_numbers(folder):
    state = load_file(folder / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights .* first model\.norm\.weight"):
        load_model(str(folder))


def test_a_weight_of_another_shape_is_refused(folder):
    state = load_file(folder / "model.safetensors") | {"model.norm.weight": torch.ones(5)}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"another shape there, first model\.norm\.weight"):
        load_model(str(folder))


def test_a_truncated_weight_file_is_refused(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="incomplete"):
        load_model(str(folder))


def test_a_folder_without_tokenizer_is_refused(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match="tokenizer"):
        load_model(str(folder))


def test_a_tokenizer_larger_than_the_embedding_is_refused(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<extra {i}>" for i in range(5000)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="only 4096 embedding rows"):
        load_model(str(folder))


@pytest.mark.parametrize("pad", ["<|pad|>", "<|endoftext|>"], ids=["free token", "only the end token"])
def test_a_tokenizer_without_padding_gets_one(folder, pad):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "pad_token"}))
    tokens = (folder / "tokenizer.json").read_text()
    if pad == "<|endoftext|>":
        (folder / "tokenizer.json").write_text(tokens.replace("<|pad|>", "<|other|>"))
    assert load_model(str(folder)).tokenizer.pad_token == pad


# --- random baselines ---------------------------------------------------------------------------------------


def test_random_weights_are_a_function_of_the_seed_alone(folder):
    first, again, other = (random_model(str(folder), seed).model.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_random_model_leaves_the_global_random_state_alone(folder):
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()
    random_model(str(folder), 3)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == random.getstate()
    assert np.array_equal(before[2][1], np.random.get_state()[1])


def test_random_model_has_the_architectures_own_initialisation(folder):
    loaded = random_model(str(folder), 0)
    config = loaded.model.config
    weights = loaded.model.model.layers[0].mlp.up_proj.weight
    assert weights.std().item() == pytest.approx(config.initializer_range, rel=0.03)
    assert weights.mean().item() == pytest.approx(0, abs=5 * config.initializer_range / math.sqrt(weights.numel()))
    assert torch.equal(loaded.model.model.norm.weight, torch.ones(config.hidden_size))
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert not loaded.model.training
    assert "seed 0" in loaded.origin and "random" in loaded.origin
