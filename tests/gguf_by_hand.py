"""A GGUF file read by hand, weight by weight and byte pair by byte pair: the slow twin of the converter."""

from itertools import pairwise

import numpy as np
import regex
from gguf import GGUFReader, dequantize
from transformers.convert_slow_tokenizer import bytes_to_unicode

GPT2_PATTERN = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
HF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def head_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp interleaves the two halves of each head's rotary pairs; row by row back to halves."""
    rows, half = np.empty_like(weight), len(weight) // heads // 2
    for head in range(heads):
        for pair in range(half):
            for side in range(2):
                rows[(head * 2 + side) * half + pair] = weight[(head * half + pair) * 2 + side]
    return rows


def read_by_hand(reader: GGUFReader) -> dict[str, np.ndarray]:
    """Every tensor of a Llama GGUF in fp32, under its transformers name."""
    heads = {
        "attn_q": reader.fields["llama.attention.head_count"].contents(),
        "attn_k": reader.fields["llama.attention.head_count_kv"].contents(),
    }
    found = {}
    for tensor in reader.tensors:
        *prefix, kind, _ = tensor.name.split(".")
        weight = dequantize(tensor.data, tensor.tensor_type)
        layer = f"model.layers.{prefix[1]}." if prefix else ""
        found[f"{layer}{HF_NAMES[kind]}.weight"] = head_rows(weight, heads[kind]) if kind in heads else weight
    return found


def tokenise_by_hand(text: str, vocabulary: dict[str, int], ranks: dict[str, int]) -> list[int]:
    """llama.cpp's ``smollm``: cut off every digit, split the rest as GPT-2 does, merge the best-ranked pair first."""
    ids, spelling = [], bytes_to_unicode()
    for piece in regex.findall(r"\p{N}|\P{N}+", text):
        for word in GPT2_PATTERN.findall(piece):
            parts = [spelling[byte] for byte in word.encode() if spelling[byte] in vocabulary]
            while pairs := [(ranks[f"{a} {b}"], i) for i, (a, b) in enumerate(pairwise(parts)) if f"{a} {b}" in ranks]:
                _, at = min(pairs)
                parts[at : at + 2] = [parts[at] + parts[at + 1]]
            ids += [vocabulary[part] for part in parts]
    return ids


def assert_weights_equal(model, by_hand: dict[str, np.ndarray]) -> None:
    state = model.state_dict()
    assert set(by_hand) == set(state) - {"lm_head.weight"}
    for name, weight in by_hand.items():
        assert np.array_equal(weight, state[name].numpy()), name
    assert model.lm_head.weight is model.model.embed_tokens.weight
