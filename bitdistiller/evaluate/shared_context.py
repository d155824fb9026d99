"""lm-eval's Hugging Face model, minus the work that multiple choice does twice.

lm-eval scores every choice as a sequence of its own: the context runs through the network once a choice, and the
log-softmax over the vocabulary is taken at every position. Here the choices of one context share one sequence::

    context  choice 1  choice 2  choice 3  choice 4
    0..L-1   L, L+1..  L, L+1..  L, L+1..  L, L+1..      positions

with an attention mask that lets each choice see the context and itself, and only the positions that predict
a choice's token are projected to logits. Texts are tokenised in one call, where lm-eval makes two a request.
The numbers are the same as lm-eval's up to rounding, which a test checks; requests, truncation, metrics and aggregation
stay lm-eval's. The mask is trusted for Llama-architecture models with PyTorch's attention; any other model takes
lm-eval's own path.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitdistiller.device import has_bf16
from bitdistiller.errors import UserError
from bitdistiller.evaluate.likelihood import by_length, hidden_states, inference, target_log_probs

_TYPICAL_TOKENS = 128  # length of one request, for lm-eval's own path, which counts a batch in requests
Request = tuple[tuple[str, str] | None, list[int], list[int]]


@dataclass(frozen=True)
class Packed:
    """All choices of one context as one sequence.

    ``requests`` are the indices of the choices, ``sources`` the positions whose hidden states predict ``targets``,
    choice after choice; ``sizes`` says how many tokens each has. ``segments`` is 0 in the context, else the number of
    the choice.
    """

    requests: list[int]
    tokens: list[int]
    positions: list[int]
    segments: list[int]
    sources: list[int]
    targets: list[int]
    sizes: list[int]


def pack(context: list[int], choices: dict[int, list[int]]) -> Packed:
    """One context and its choices, by request index; a choice's last token predicts nothing and is left out."""
    start = len(context)
    tokens, positions, segments = list(context), list(range(start)), [0] * start
    sources: list[int] = []
    for number, choice in enumerate(choices.values(), 1):
        sources += [start - 1, *range(len(tokens), len(tokens) + len(choice) - 1)]
        tokens += choice[:-1]
        positions += range(start, start + len(choice) - 1)
        segments += [number] * (len(choice) - 1)
    targets = [token for choice in choices.values() for token in choice]
    return Packed(list(choices), tokens, positions, segments, sources, targets, [len(c) for c in choices.values()])


class SharedContextLM(HFLM):
    """``HFLM`` around a loaded model, with batches of about ``batch_tokens`` tokens and bf16 where it is native."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_tokens: int):
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            batch_size=max(1, batch_tokens // _TYPICAL_TOKENS),
            mixed_precision_dtype="bfloat16" if has_bf16() else None,
            softmax_dtype="float32",
        )
        self.batch_tokens = batch_tokens
        self._encoded: dict[str, list[int]] = {}

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """lm-eval's, with the texts that it is going to tokenise already tokenised."""
        pairs = [request.args for request in requests]
        texts = {text for context, choice in pairs for text in (context.rstrip(), context + choice)}
        self._encoded = self._encode(texts)
        return super().loglikelihood(requests, disable_tqdm)

    def _encode(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """Tokens of texts by the defaults of ``tok_encode``, where they bring no beginning token of their own."""
        beginning = self.tokenizer.decode(self.prefix_token_id)
        plain = [text for text in texts if not text.startswith(beginning)]
        special = {} if self.add_bos_token is None else {"add_special_tokens": self.add_bos_token}
        ids = self.tokenizer(plain, verbose=False, **special)["input_ids"] if plain else []
        return dict(zip(plain, ids, strict=True))

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: object,
    ) -> list[int]:
        if add_special_tokens is None and left_truncate_len is None and string in self._encoded:
            return self._encoded[string]
        return super().tok_encode(string, add_special_tokens, left_truncate_len, **kwargs)

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        config = self.model.config
        if config.model_type != "llama" or config._attn_implementation != "sdpa":
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        packed = self._pack(requests)
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        progress = tqdm(total=len(requests), disable=disable_tqdm or None, desc="Running loglikelihood requests")
        with inference(self.model), progress:
            for batch in by_length([len(group.tokens) for group in packed], self.batch_tokens):
                for index, answer in self._score([packed[i] for i in batch]):
                    answers[index] = answer
                    if requests[index][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[index][0], answer)
                    progress.update(1)
        return answers

    def _pack(self, requests: list[Request]) -> list[Packed]:
        groups: dict[tuple[int, ...], dict[int, list[int]]] = defaultdict(dict)
        for index, (_, context, choice) in enumerate(requests):
            if len(choice) > self.max_length:
                raise UserError(f"a choice of {len(choice)} tokens exceeds the model's context of {self.max_length}")
            # The last token is never an input, so one more than the model's context fits; lm-eval cuts on the left.
            groups[tuple(context[len(choice) - self.max_length - 1 :])][index] = choice
        return [pack(list(context), choices) for context, choices in groups.items()]

    def _score(self, batch: list[Packed]) -> list[tuple[int, tuple[float, bool]]]:
        width = max(len(group.tokens) for group in batch)
        tokens = self._padded([group.tokens for group in batch], width, 0)
        positions = self._padded([group.positions for group in batch], width, 0)
        segments = self._padded([group.segments for group in batch], width, -1)
        hidden = hidden_states(self.model, tokens, attention_mask=_mask(segments), position_ids=positions)
        sources = [row * width + source for row, group in enumerate(batch) for source in group.sources]
        targets = [token for group in batch for token in group.targets]
        log_probs, greedy = target_log_probs(
            self.model,
            hidden.flatten(0, 1)[torch.tensor(sources, device=self.device)],
            torch.tensor(targets, device=self.device),
        )
        sizes = [size for group in batch for size in group.sizes]
        indices = [index for group in batch for index in group.requests]
        parts = zip(indices, log_probs.cpu().split(sizes), greedy.cpu().split(sizes), strict=True)
        return [(index, (chosen.sum().item(), bool(best.all()))) for index, chosen, best in parts]

    def _padded(self, rows: list[list[int]], width: int, value: int) -> Tensor:
        return torch.tensor([row + [value] * (width - len(row)) for row in rows], device=self.device)


def _mask(segments: Tensor) -> Tensor:
    """(B, 1, T, T), true where a query (third axis) may look: earlier tokens of the context and of its own segment."""
    query, key = segments[:, None, :, None], segments[:, None, None, :]
    order = torch.arange(segments.shape[1], device=segments.device)
    return (order[:, None] >= order[None, :]) & ((key == 0) | (key == query))
