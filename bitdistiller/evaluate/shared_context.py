"""lm-eval's Hugging Face model, minus the work that multiple choice does twice.

lm-eval scores every choice as a sequence of its own: the context runs through the network once a choice, and the
log-softmax over the vocabulary is taken at every position. Here the choices of one context share one sequence, and so
do contexts that begin alike, as few-shot prompts do: their common beginning is the trunk of a tree of segments::

    trunk    context 1  choice  choice  context 2  choice  choice
    0..L-1   L..M-1     M, M+1  M, M+1  L..N-1     N, N+1  N, N+1     positions

with an attention mask that lets each token see what lies between it and the root, and only the positions that predict
a choice's token are projected to logits. A context that shares its beginning with no other is a trunk by itself.
Texts are tokenised in one call, where lm-eval makes two a request.
The numbers are the same as lm-eval's up to rounding, which a test checks; requests, truncation, metrics and aggregation
stay lm-eval's. The mask is trusted for Llama-architecture models with PyTorch's attention; any other model takes
lm-eval's own path.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitdistiller.device import has_bf16
from bitdistiller.errors import UserError
from bitdistiller.evaluate.likelihood import by_length, common_length, hidden_states, inference, target_log_probs

_TYPICAL_TOKENS = 128  # length of one request, for lm-eval's own path, which counts a batch in requests

# Tokens that a context has to save to be put behind the trunk of others. A longer sequence pays for attention that the
# mask then hides; for the smallest network here, of a million weights, 64 tokens outweigh that. And prompts without
# examples hardly ever share as many, so that they keep their batches of short sequences.
_LEAST_SAVING = 64

# Length of a shared sequence, in trunks. Hidden attention grows with every context that joins while the trunk's part of
# the cost shrinks; for trunks of 300 to 2,500 tokens and small models on a processor the sum is lowest around here.
_TRUNKS = 3

Request = tuple[tuple[str, str] | None, list[int], list[int]]
Context = tuple[int, ...]
Choices = dict[int, list[int]]  # by request index


class Branch(NamedTuple):
    """The end of a branch: its segment, the place of its last token in the sequence, the position that comes next."""

    segment: int
    last: int
    position: int


@dataclass
class Packed:
    """Contexts and their choices as one sequence, a tree of segments.

    ``segments`` numbers the segment of each token, ``parents`` the one that each segment goes on from (the trunk, 0,
    from itself). ``requests`` are the indices of the choices, ``sources`` the places in the sequence whose hidden
    states predict ``targets``, choice after choice; ``sizes`` says how many tokens each has.
    """

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def grow(self, parent: Branch, tokens: Sequence[int]) -> Branch:
        """Append a segment that goes on where ``parent`` ends; without tokens there is none to append."""
        if not tokens:
            return parent
        segment = len(self.parents)
        self.parents.append(parent.segment)
        self.tokens += tokens
        self.positions += range(parent.position, parent.position + len(tokens))
        self.segments += [segment] * len(tokens)
        return Branch(segment, len(self.tokens) - 1, parent.position + len(tokens))


def pack(contexts: dict[Context, Choices], trunk: int) -> Packed:
    """Contexts whose first ``trunk`` tokens are the same; a choice's last token predicts nothing and is left out."""
    packed = Packed()
    root = packed.grow(Branch(0, -1, 0), next(iter(contexts))[:trunk])
    for context, choices in contexts.items():
        end = packed.grow(root, context[trunk:])
        for request, choice in choices.items():
            first = len(packed.tokens)
            packed.grow(end, choice[:-1])
            packed.requests.append(request)
            packed.sources += [end.last, *range(first, len(packed.tokens))]
            packed.targets += choice
            packed.sizes.append(len(choice))
    return packed


def trunks(groups: dict[Context, Choices], longest: int) -> list[tuple[int, list[Context]]]:
    """Which contexts share one sequence of at most ``longest`` tokens, and how many tokens their trunk has.

    In sorted order contexts with long common beginnings are neighbours; one joins the trunk of its neighbour if that
    saves enough and does not make the sequence too long. A context on its own may be longer. The order is that of the
    first request.
    """
    found: list[tuple[int, list[Context]]] = []
    total = 0  # tokens of the last one's members if they shared nothing
    for context in sorted(groups):
        own = len(context) + sum(len(choice) - 1 for choice in groups[context].values())
        if found:
            trunk, members = found[-1]
            shared = min(trunk, common_length([members[-1], context]))
            saving = len(members) * shared - (len(members) - 1) * trunk
            length = total + own - len(members) * shared
            if saving >= _LEAST_SAVING and length <= min(longest, _TRUNKS * shared):
                found[-1] = shared, [*members, context]
                total += own
                continue
        found.append((len(context), [context]))
        total = own
    place = {context: index for index, context in enumerate(groups)}
    return sorted(found, key=lambda group: min(place[context] for context in group[1]))


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
        groups: dict[Context, Choices] = defaultdict(dict)
        for index, (_, context, choice) in enumerate(requests):
            if len(choice) > self.max_length:
                raise UserError(f"a choice of {len(choice)} tokens exceeds the model's context of {self.max_length}")
            # The last token is never an input, so one more than the model's context fits; lm-eval cuts on the left.
            groups[tuple(context[len(choice) - self.max_length - 1 :])][index] = choice
        return [
            pack({context: groups[context] for context in contexts}, trunk)
            for trunk, contexts in trunks(groups, self.batch_tokens)
        ]

    def _score(self, batch: list[Packed]) -> list[tuple[int, tuple[float, bool]]]:
        width = max(len(group.tokens) for group in batch)
        tokens = self._padded([group.tokens for group in batch], width)
        positions = self._padded([group.positions for group in batch], width)
        segments = self._padded([group.segments for group in batch], width)
        mask = _mask(segments, [group.parents for group in batch])
        hidden = hidden_states(self.model, tokens, attention_mask=mask, position_ids=positions)
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

    def _padded(self, rows: list[list[int]], width: int) -> Tensor:
        # Padding counts as trunk: it comes last, so no token of the tree sees it.
        return torch.tensor([row + [0] * (width - len(row)) for row in rows], device=self.device)


def _mask(segments: Int[Tensor, "B T"], parents: list[list[int]]) -> Bool[Tensor, "B 1 T T"]:
    """True where a query (third axis) may look: earlier tokens of its own segment and of the segments above it."""
    sees = torch.eye(max(map(len, parents)), dtype=torch.bool).repeat(len(parents), 1, 1)
    for row, above in zip(sees, parents, strict=True):
        for segment, parent in enumerate(above):
            row[segment] |= row[parent]
    rows = torch.arange(len(parents), device=segments.device)[:, None, None]
    visible = sees.to(segments.device)[rows, segments[:, :, None], segments[:, None, :]]
    return visible.tril()[:, None]
