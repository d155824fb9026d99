"""The micro models in git: complete, small, documented by numbers that still hold; their pretraining on a tiny text."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from bitdistiller.config import load_params
from bitdistiller.data.blocks import packed_blocks
from bitdistiller.data.text import load_text
from bitdistiller.errors import UserError
from bitdistiller.models import load_model
from bitdistiller.models.micro import MICRO_MODELS, WEIGHTS_DIR
from bitdistiller.models.pretrain import PretrainFile, load_pretrain_params, pretrain, pretrain_tokenizer


def test_weights_together_fit_into_git():
    sizes = [(WEIGHTS_DIR / name / "model.safetensors").stat().st_size for name in MICRO_MODELS]
    assert sum(sizes) < 24e6


@pytest.mark.parametrize("name", MICRO_MODELS)
def test_the_card_states_the_metrics_that_lie_beside_it(name):
    card = (WEIGHTS_DIR / name / "README.md").read_text()
    metrics = json.loads((WEIGHTS_DIR / name / "metrics.json").read_text())
    for number in (f"{metrics['parameters']:,}", f"{metrics['test_perplexity']:.2f}", f"{metrics['tokens_seen']:,}"):
        assert number in card
    assert "make pretrain" in card


@pytest.mark.parametrize("name", MICRO_MODELS)
def test_the_stated_perplexity_is_the_model_s(name):
    metrics = json.loads((WEIGHTS_DIR / name / "metrics.json").read_text())
    loaded = load_model(name)
    assert sum(p.numel() for p in loaded.model.parameters()) == metrics["parameters"]
    blocks = packed_blocks(loaded.tokenizer, load_text(metrics["text"]["text_sets"], "validation"), 256)
    part = blocks[:: max(1, len(blocks) // 40)]
    with torch.no_grad():
        loss = loaded.model(input_ids=part, labels=part).loss.item()
    assert math.exp(loss) == pytest.approx(metrics["validation_perplexity"], rel=0.15)


def test_shared_and_other_vocabularies():
    vocabularies = {name: load_model(name).tokenizer.get_vocab() for name in MICRO_MODELS}
    assert vocabularies["micro-1m"] == vocabularies["micro-3m"] == vocabularies["micro-6m"]
    other = vocabularies["micro-3m-alt"]
    assert len(other) == len(vocabularies["micro-3m"]) == 4096 and other != vocabularies["micro-3m"]


@pytest.fixture(scope="module")
def file(tiny_text) -> PretrainFile:
    training = {
        "block_length": 32, "batch_blocks": 4, "learning_rate": 5e-3, "learning_rate_factor": 0.3, "weight_decay": 0.1,
        "evaluations_per_epoch": 2, "max_epochs": 3, "seed": 0, "threads": 1,
    }  # fmt: skip
    model = {"tokenizer": "bpe", "plateau": 0.5, "patience": 2, "least_gain": 0.1}
    return PretrainFile(
        text=[str(tiny_text)], training=training, tokenizers={"bpe": {}}, models={"micro-1m": model, "missing": model}
    )


def test_pretraining_stops_when_held_out_loss_does_and_stores_the_best(file, tmp_path):
    pretrain_tokenizer("bpe", file.text, tmp_path / "tokenizers" / "bpe")
    metrics = pretrain("micro-1m", file, tmp_path)
    stored = LlamaForCausalLM.from_pretrained(tmp_path / "models" / "micro-1m")
    assert stored.dtype == torch.float16
    assert metrics["validation_perplexity"] < 60 < 4096  # the text has 21 words; a random model is near 4,096
    assert f"{metrics['validation_perplexity']:.2f}" in (tmp_path / "models" / "micro-1m" / "README.md").read_text()
    assert not (tmp_path / "checkpoints" / "micro-1m").exists()


def test_a_name_that_is_no_micro_model_is_refused(file, tmp_path):
    with pytest.raises(UserError, match="unknown micro model 'missing'"):
        pretrain("missing", file, tmp_path)


def test_pretraining_parameters_name_every_micro_model():
    root = Path(__file__).parent.parent
    file = load_pretrain_params(root / "pretrain" / "params.yaml")
    assert set(file.models) == set(MICRO_MODELS)
    assert {m.tokenizer for m in MICRO_MODELS.values()} <= set(file.tokenizers)
    assert set(file.text) == set(load_params(root / "params.yaml").training_text["by-3m"].text)
