"""The real SmolLM2, out of its wheel."""

import math

import pytest
import torch
from gguf import GGUFReader
from hypothesis import given
from hypothesis import strategies as st

from bitdistiller import assets
from bitdistiller.data.blocks import packed_blocks
from bitdistiller.data.text import load_text
from bitdistiller.models import gguf, load_model
from bitdistiller.quant import make_format, quantizable
from tests.gguf_by_hand import assert_weights_equal, read_by_hand, tokenise_by_hand

SENTENCES = ["The capital of France is Paris.", "In 1999, naïve cafés cost $3.50.\n\n1. first\n 2. second"]


@pytest.fixture(scope="module")
def smollm2():
    return load_model("smollm2-135m")


def test_smollm2_answers_greedily(smollm2):
    prompt = smollm2.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = smollm2.model.generate(**prompt, max_new_tokens=20, do_sample=False)[0]
    answer = output[prompt["input_ids"].shape[1] :]
    assert "Paris" in smollm2.tokenizer.decode(answer, skip_special_tokens=True)
    assert answer[-1] == smollm2.tokenizer.eos_token_id, "the answer ends by itself"


def test_smollm2_says_that_its_weights_were_4_bit(smollm2):
    assert "Q4_1" in smollm2.origin and "dequantized" in smollm2.origin and "4-bit grid" in smollm2.origin


def test_smollm2_weights_lie_on_a_4_bit_grid(smollm2):
    groups = smollm2.model.model.layers[3].mlp.down_proj.weight.detach().reshape(-1, 32)
    distinct = torch.tensor([len(group.unique()) for group in groups[::50]])
    assert distinct.max() <= 16


def test_smollm2_special_tokens(smollm2):
    tokenizer, config = smollm2.tokenizer, smollm2.model.config
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
    )
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 0)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer(chat)["input_ids"].count(tokenizer.bos_token_id) == 3


@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc", "Co", "Cn"], max_codepoint=0xFFFF)))
def test_smollm2_tokenizer_round_trip(smollm2, text):
    assert smollm2.tokenizer.decode(smollm2.tokenizer(text)["input_ids"]) == text


@pytest.mark.slow
def test_smollm2_equals_the_file_read_by_hand(smollm2, tmp_path):
    path = tmp_path / "smollm2.gguf"
    path.write_bytes(assets.read_member("smollm2", gguf.SMOLLM2_MEMBER))
    reader = GGUFReader(path)
    assert_weights_equal(smollm2.model, read_by_hand(reader))
    tokens, merges = (reader.fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "merges"))
    vocabulary, ranks = ({key: i for i, key in enumerate(keys)} for keys in (tokens, merges))
    texts = [document.text for document in load_text(["wikipedia", "web"], "validation")[:100]]
    for text in [*SENTENCES, *texts]:
        assert smollm2.tokenizer(text)["input_ids"] == tokenise_by_hand(text, vocabulary, ranks)


@pytest.mark.slow
def test_smollm2_perplexity_on_wikipedia_is_that_of_a_working_model(smollm2):
    """The whole Wikipedia sets measure 20 to 28; the bounds leave room for the noise of four windows."""
    blocks = packed_blocks(smollm2.tokenizer, load_text("wikipedia", "test")[:40], 512)[:4]
    with torch.no_grad():
        loss = smollm2.model(blocks, labels=blocks).loss
    assert 12 < math.exp(loss.item()) < 35


@pytest.mark.slow
def test_nf_at_2_bits_destroys_smollm2_by_the_bias_of_its_levels():
    """Its levels lean upwards. Mirrored in half of the rows they err as much and lean nowhere; INT has no bias."""
    loaded = load_model("smollm2-135m")
    model, tokenizer = loaded.model, loaded.tokenizer
    blocks = packed_blocks(tokenizer, load_text("wikipedia", "test")[:40], 256)[:4]
    nf, int_asym = (make_format(name, bits=2, group_size=64) for name in ("nf-asym", "int-asym"))
    originals = {name: layer.weight.detach().clone() for name, layer in quantizable(model).items()}

    def loss(rounded) -> float:
        with torch.no_grad():
            for name, layer in quantizable(model).items():
                layer.weight.copy_(rounded(originals[name]))
            return model(blocks, labels=blocks).loss.item()

    def mirrored(w):
        sign = 1 - 2 * (torch.arange(len(w)) % 2)[:, None]
        return sign * nf.quantize(sign * w).dequantize()

    def leaning(w):
        moved = (nf.quantize(w).dequantize() - w).mean()
        return int_asym.quantize(w).dequantize() + moved

    plain, balanced = loss(lambda w: nf.quantize(w).dequantize()), loss(mirrored)
    even, moved = loss(lambda w: int_asym.quantize(w).dequantize()), loss(leaning)
    losses = plain, balanced, even, moved
    assert plain > max(balanced, even) + 3 and moved > even + 3, losses
