"""Any causal LM whose Linear layers transformers exposes: tiny ones of other families through the whole pipeline."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bitdistiller.distill.clipping import UNCLIPPED, search_model
from bitdistiller.distill.trainer import train
from bitdistiller.errors import UserError
from bitdistiller.evaluate.run import evaluate_run
from bitdistiller.models import load_model
from bitdistiller.models.micro import train_tokenizer
from bitdistiller.quant import quantizable
from tests import tiny

NORMAL = {"num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 48, "tie_word_embeddings": True}
FAMILIES = {  # model_type -> what its configuration needs to be tiny
    "llama": NORMAL,
    "mistral": NORMAL,
    "qwen2": NORMAL,
    "qwen3": NORMAL,
    "gemma": NORMAL,
    "gemma3_text": NORMAL | {"query_pre_attn_scalar": 16, "sliding_window": 16},
    "gpt_neox": {"intermediate_size": 48},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "opt-projected": {"ffn_dim": 48, "word_embed_proj_dim": 24},
}
LAYERS = {"gpt_neox": 2 * 4, "opt": 2 * 6, "opt-projected": 2 * 6 + 2}  # of two blocks, and OPT's two projections


def make(folder, family: str, **more):
    """A random model of a family with the tiny world's tokenizer, saved to ``folder``."""
    tokenizer = train_tokenizer("bpe", tiny.sentences(50))
    config = AutoConfig.for_model(
        family.split("-")[0], vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, bos_token_id=0, eos_token_id=0, pad_token_id=1, initializer_range=0.2,
        **FAMILIES.get(family, {}), **more,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_goes_through_clipping_training_and_scoring(family, tmp_path, tiny_text):
    params = tiny.params(make(tmp_path / "model", family), tiny_text, steps=2)
    found = search_model(params.quantizers["int2"], tmp_path / "clip" / "int2.safetensors")
    layers = quantizable(load_model(str(tmp_path / "model")).model)
    assert len(layers) == LAYERS.get(family, 2 * 7)
    assert found["layers"] == sum(not name.endswith(UNCLIPPED) for name in layers)
    tiny.make_teacher(params, tmp_path)
    assert train("student", params, tmp_path).steps == 2
    scores, _ = evaluate_run("student", params, tmp_path)
    (perplexity,) = [score.value for score in scores.scores if score.metric == "perplexity"]
    assert 1 < perplexity < float("inf")
    assert scores.quantized_parameters == sum(layer.weight.numel() for layer in layers.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_head_of_the_last_hidden_state(family, tmp_path):
    model = load_model(str(make(tmp_path, family))).model
    ids = torch.randint(0, 200, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        expected = model(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(model.get_output_embeddings()(hidden), expected)


@pytest.mark.parametrize(
    "family, changed",
    [
        ("gemma2", {"final_logit_softcapping": 0.5, "query_pre_attn_scalar": 16}),
        ("granite", {"logits_scaling": 4.0}),
        ("cohere", {"logit_scale": 0.25}),
    ],
)
def test_models_that_change_their_logits_are_refused(family, changed, tmp_path):
    make(tmp_path, family, **NORMAL, **changed)
    with pytest.raises(UserError, match=rf"models of type {family} .* choose another model"):
        load_model(str(tmp_path))


def test_a_model_without_linear_layers_is_refused(tmp_path):
    model = load_model(str(make(tmp_path, "gpt2", n_positions=128)))
    with pytest.raises(UserError, match=r"GPT2LMHeadModel has no torch\.nn\.Linear"):
        quantizable(model.model)
