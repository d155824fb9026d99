"""Attention to a beginning that all sequences of a batch share, held once instead of once a sequence.

Few-shot prompts begin with the same examples, often ten times as long as the question. In a usual cache every sequence
has its own copy of their keys and values, and every step reads all copies. Here they are computed and kept once: the
queries of a whole batch meet them in one matrix product, and one softmax spans them and the sequence's own
tokens::

    shared            own (left-padded)      written
    0 .. P-1          P .. P+L-1             P+L ...        positions

Heads that share keys (grouped-query attention) are stacked as queries, so that keys are never repeated either. The
softmax is taken in fp32, as transformers' eager attention does.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

NAME = "shared_prefix"  # of the attention among those that transformers knows
_ROOM = 64  # tokens that a cache grows by
Prefix = list[tuple[Tensor, Tensor]]  # keys and values of each layer: (heads, tokens, head size)


class _GrowingLayer(DynamicLayer):
    """A cache layer with room ahead: transformers' own copies all keys and values for every new token."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._keys = key_states[:, :, :0].clone()
            self._values = value_states[:, :, :0].clone()
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        if end > self._keys.shape[2]:
            self._keys, self._values = (_with_room(held, start, end) for held in (self._keys, self._values))
        self._keys[:, :, start:end] = key_states
        self._values[:, :, start:end] = value_states
        self.keys, self.values = self._keys[:, :, :end], self._values[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        length = self.get_seq_length()
        self._keys, self._values = self._keys[indices], self._values[indices]
        self.keys, self.values = self._keys[:, :, :length], self._values[:, :, :length]


def _with_room(held: Tensor, used: int, needed: int) -> Tensor:
    grown = held.new_empty((*held.shape[:2], needed + _ROOM, held.shape[3]))
    grown[:, :, :used] = held[:, :, :used]
    return grown


def empty_cache(model: PreTrainedModel) -> Cache:
    """A cache for sequences that grow by a token at a time."""
    if model.config._attn_implementation != NAME:
        return DynamicCache(config=model.config)
    return Cache(layers=[_GrowingLayer() for _ in range(model.config.num_hidden_layers)])


def supports_prefix(model: PreTrainedModel) -> bool:
    """Whether a model's attention can be replaced: Llama's architecture, with PyTorch's attention."""
    return model.config.model_type == "llama" and model.config._attn_implementation == "sdpa"


@contextmanager
def shared_prefix(model: PreTrainedModel, tokens: list[int]) -> Iterator[Prefix | None]:
    """Keys and values of a beginning at every layer, while the model's attention is one that can use them.

    None if there are no tokens, or the attention cannot be replaced; sequences have no beginning in common then.
    """
    if not supports_prefix(model):
        yield None
        return
    states = _states(model, tokens) if tokens else None
    usual = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield states
    finally:
        model.set_attn_implementation(usual)


def _states(model: PreTrainedModel, tokens: list[int]) -> Prefix:
    cache = DynamicCache(config=model.config)
    model.base_model(input_ids=torch.tensor([tokens], device=model.device), past_key_values=cache, use_cache=True)
    return [(layer.keys[0], layer.values[0]) for layer in cache.layers]


def visible(real: Bool[Tensor, "B S"], queries: int) -> Bool[Tensor, "B 1 T S"]:
    """Which own tokens the last ``queries`` tokens may look at: earlier ones that are no padding, and themselves."""
    place = torch.arange(real.shape[1], device=real.device)
    last = place[-queries:, None]
    return ((place <= last) & real[:, None, None, :]) | (place == last)


def attend(
    module: nn.Module,
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B K S D"],
    value: Float[Tensor, "B K S D"],
    attention_mask: Bool[Tensor, "B 1 T S"],
    scaling: float,
    dropout: float = 0.0,
    prefix: Prefix | None = None,
    **_: object,
) -> tuple[Float[Tensor, "B T H D"], None]:
    """Attention of transformers' interface; without ``prefix`` it is the usual one."""
    (batch, heads, length, size), groups = query.shape, key.shape[1]
    stacked = (query * scaling).reshape(batch, groups, -1, size)  # (B, K, H/K * T, D): heads that share keys, stacked
    scores = (stacked @ key.transpose(2, 3)).unflatten(2, (-1, length))
    scores = scores.masked_fill(~attention_mask[:, :, None], float("-inf")).flatten(2, 3)
    if prefix is None:
        out = _softmax(scores).to(value.dtype) @ value
    else:
        keys, values = prefix[module.layer_idx]
        together = stacked.transpose(0, 1).flatten(1, 2)  # (K, B * H/K * T, D)
        first = (together @ keys.transpose(1, 2)).unflatten(1, (batch, -1)).transpose(0, 1)
        weights = _softmax(torch.cat([first, scores], dim=3)).to(value.dtype)
        shared, own = weights.split([keys.shape[1], key.shape[2]], dim=3)
        from_prefix = (shared.transpose(0, 1).flatten(1, 2) @ values).unflatten(1, (batch, -1)).transpose(0, 1)
        out = own @ value + from_prefix
    return out.reshape(batch, heads, length, size).transpose(1, 2), None


def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(dim=-1, dtype=torch.float32)


AttentionInterface.register(NAME, attend)


def own_positions(real: Bool[Tensor, "B S"], prefix: int) -> Int[Tensor, "B S"]:
    """Position of every own token: padding has none and takes that of the first token."""
    return prefix + (real.long().cumsum(dim=1) - 1).clamp_min(0)
