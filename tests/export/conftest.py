"""Two models to export: one that only the native container holds, and one that all do."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bitdistiller.models import load_model
from bitdistiller.quant import quantizable


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
