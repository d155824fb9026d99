"""One batch of prompts -> what a model writes after each, a token at a time.

Prompts are padded on the left, so that all sequences write into the same column. A sequence that has ended leaves the
batch: a step costs what the sequences that still write cost. Each has random numbers of its own, drawn from the seed
and its key alone, so a sample does not depend on which other prompts share its batch (but for rounding).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache

from bitdistiller.reasoning.prefix import NAME, Prefix, empty_cache, own_positions, visible

_TAIL = 8  # tokens beyond a stop word's characters that are decoded to look for it: a character may take several


@dataclass(frozen=True)
class Sampling:
    """How to write: at most ``max_new_tokens`` tokens; ``temperature`` 0 is greedy; ``seed`` counts only above it."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Prompt:
    """What is to be continued.

    ``key`` names it among all prompts; writing ends after any of the ``stop`` words, and after ``most`` tokens where
    that is less than the sampling allows.
    """

    key: str
    tokens: list[int]
    stop: tuple[str, ...] = ()
    most: int | None = None

    def limit(self, sampling: Sampling) -> int:
        """Tokens to write at most."""
        return sampling.max_new_tokens if self.most is None else min(self.most, sampling.max_new_tokens)


@dataclass(frozen=True)
class Written:
    """What was written: token ids with the end token if there is one; ``ended`` is False if only the length ended it.

    A stop word, where one ended it, is still part of the tokens.
    """

    key: str
    tokens: list[int]
    ended: bool


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens after which a text is over."""
    stated = getattr(model.generation_config, "eos_token_id", None)
    return {tokenizer.eos_token_id, *(stated if isinstance(stated, list) else [stated])} - {None}


def decode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    prefix: Prefix | None = None,
) -> list[Written]:
    """Continue all prompts of one batch.

    Args:
        prompts: without the tokens of ``prefix``.
        prefix: keys and values of a beginning that all prompts share, inside ``shared_prefix``.
    """
    ends = end_tokens(model, tokenizer)
    lengths = [len(prompt.tokens) for prompt in prompts]
    width, device = max(lengths), model.device
    rows = [[tokenizer.pad_token_id] * (width - len(prompt.tokens)) + prompt.tokens for prompt in prompts]
    tokens = torch.tensor(rows, device=device)
    real = torch.arange(width, device=device) >= width - torch.tensor(lengths, device=device)[:, None]
    chances = torch.from_numpy(np.stack([_chances(prompt.key, sampling) for prompt in prompts])).to(device)
    written: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    active = list(range(len(prompts)))
    cache = empty_cache(model)
    for step in range(sampling.max_new_tokens):
        hidden = _forward(model, tokens, real, cache, prefix)
        chosen = choose(model.get_output_embeddings()(hidden).float(), sampling, chances[active, step])
        for index, token in zip(active, chosen.tolist(), strict=True):
            written[index].append(token)
            ended[index] = token in ends or _stops(tokenizer, written[index], prompts[index].stop)
        more = [not ended[index] and step + 1 < prompts[index].limit(sampling) for index in active]
        stay = [place for place, goes_on in enumerate(more) if goes_on]
        if not stay:
            break
        if len(stay) < len(active):
            kept = torch.tensor(stay, device=device)
            active = [active[place] for place in stay]
            cache.batch_select_indices(kept)
            chosen, real = chosen[kept], real[kept]
        tokens = chosen[:, None]
        real = torch.cat([real, real.new_ones(len(active), 1)], dim=1)
    return [Written(*parts) for parts in zip([p.key for p in prompts], written, ended, strict=True)]


def _forward(
    model: PreTrainedModel, tokens: Int[Tensor, "B T"], real: Bool[Tensor, "B S"], cache: Cache, prefix: Prefix | None
) -> Float[Tensor, "B H"]:
    """Hidden states that predict the next token of every sequence."""
    shared = 0 if prefix is None else prefix[0][0].shape[1]
    if model.config._attn_implementation == NAME:
        how = {"attention_mask": visible(real, tokens.shape[1]), "prefix": prefix}
    else:
        how = {"attention_mask": real.long()}
    output = model.base_model(
        input_ids=tokens,
        position_ids=own_positions(real, shared)[:, -tokens.shape[1] :],
        past_key_values=cache,
        use_cache=True,
        **how,
    )
    return output.last_hidden_state[:, -1]


def _chances(key: str, sampling: Sampling) -> Float64[np.ndarray, " steps"]:
    digest = hashlib.sha256(f"{sampling.seed}:{key}".encode()).digest()
    return np.random.default_rng(list(digest)).random(sampling.max_new_tokens)


def choose(logits: Float[Tensor, "B V"], sampling: Sampling, chances: Float64[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The next token of each row: the most probable one, or where its random number falls in the distribution.

    Args:
        chances: uniform in [0, 1), one a row.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=1)
    probabilities = (logits / sampling.temperature).softmax(dim=1).double()
    order = None
    if sampling.top_p < 1:
        probabilities, order = probabilities.sort(dim=1, descending=True, stable=True)
        before = probabilities.cumsum(dim=1) - probabilities
        probabilities = probabilities.where(before < sampling.top_p, 0)  # the token that crosses top_p stays
    reached = probabilities.cumsum(dim=1)
    place = torch.searchsorted(reached, chances[:, None] * reached[:, -1:], right=True)
    place = place.clamp_max((probabilities > 0).long().cumsum(dim=1).argmax(dim=1, keepdim=True))
    return (place if order is None else order.gather(1, place)).squeeze(1)


def _stops(tokenizer: PreTrainedTokenizerBase, tokens: list[int], stop: tuple[str, ...]) -> bool:
    if not stop:
        return False
    tail = tokenizer.decode(tokens[-(max(map(len, stop)) + _TAIL) :])
    return any(word in tail for word in stop)
