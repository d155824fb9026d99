"""Perplexity on held-out text: exp of the total negative log-likelihood over the total number of tokens.

Every document starts after the end-of-text token, so that its first token is predicted too. It is cut into
windows of inputs that do not overlap; the targets are the inputs moved by one, so every token is predicted exactly
once, the first of a window from nothing but the last token of the window before. Overlapping windows would give each
token more context and a lower number, at a multiple of the cost; published tables use disjoint windows.

The uncertainty that matters is which documents were drawn, not which tokens: tokens of one document share its topic.
So the interval resamples documents. A text that is one single document (WikiText-2 as perplexity papers
read it) is resampled by windows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.stats import bootstrap
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitdistiller.data.blocks import encode
from bitdistiller.data.text import Document
from bitdistiller.errors import UserError
from bitdistiller.evaluate.likelihood import by_length, hidden_states, inference, target_log_probs
from bitdistiller.results import ITEM_COLUMNS, Score

RESAMPLES = 2000
_OVERFLOW = 700  # nats a token: exp() of a little more is no float


@dataclass(frozen=True)
class Window:
    """Input tokens and, moved by one, the tokens they predict; ``item`` is the document (or window) they count for."""

    item: str
    inputs: list[int]
    targets: list[int]


def windows(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[Document], length: int, max_tokens: int
) -> list[Window]:
    """Documents in the order of their ids, cut into windows, up to ``max_tokens`` targets if there are so many."""
    found: list[Window] = []
    left = max_tokens
    for document in sorted(documents, key=lambda document: document.id):
        stream = [tokenizer.eos_token_id, *encode(tokenizer, [document.text])[0]][: left + 1]
        for start in range(0, len(stream) - 1, length):
            part = stream[start : start + length + 1]
            item = document.id if len(documents) > 1 else f"{document.id}-{start // length}"
            found.append(Window(item, part[:-1], part[1:]))
        left -= len(stream) - 1
        if left == 0:
            break
    return found


def document_nll(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    window: int,
    max_tokens: int,
    batch_tokens: int,
    task: str = "perplexity",
) -> pd.DataFrame:
    """Negative log-likelihood of each document, as item rows (see ``bitdistiller.results``).

    Args:
        documents: scored in the order of their ids; the one that passes ``max_tokens`` is cut there.
        window: input tokens that the model sees at once.
        max_tokens: predicted tokens in all.
        batch_tokens: padded tokens of one forward pass.
        task: name in the ``task`` column.

    Raises:
        UserError: no text, a window longer than the model's context, or a tokenizer without end-of-text token.
    """
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and window > context:
        raise UserError(f"{task}: window {window} is longer than the model's context of {context} tokens")
    if tokenizer.eos_token_id is None:
        raise UserError(f"{task}: the tokenizer has no end-of-text token to start a document with")
    parts = windows(tokenizer, documents, window, max_tokens)
    if not parts:
        raise UserError(f"{task}: no held-out text to score in {len(documents)} documents")
    totals: dict[str, list[float]] = {part.item: [0.0, 0.0] for part in parts}
    predicted = sum(len(part.targets) for part in parts)
    with inference(model), tqdm(total=predicted, desc=task, unit="tok", disable=None) as progress:
        for batch in by_length([len(part.inputs) for part in parts], batch_tokens):
            chosen = [parts[index] for index in batch]
            for part, value in zip(chosen, _batch_nll(model, chosen), strict=True):
                totals[part.item][0] += value
                totals[part.item][1] += len(part.targets)
                progress.update(len(part.targets))
    rows = [(task, item, "nll", value, weight) for item, (value, weight) in totals.items()]
    return pd.DataFrame(rows, columns=ITEM_COLUMNS)


def _batch_nll(model: PreTrainedModel, batch: Sequence[Window]) -> list[float]:
    inputs = pad_sequence([torch.tensor(part.inputs) for part in batch], batch_first=True)
    sizes = [len(part.targets) for part in batch]
    real = torch.arange(inputs.shape[1])[None] < torch.tensor(sizes)[:, None]
    # Padding stands to the right and attention is causal: no real position sees it, so no mask is needed.
    hidden = hidden_states(model, inputs.to(model.device))[real.to(model.device)]
    targets = torch.tensor([token for part in batch for token in part.targets], device=model.device)
    log_probs, _ = target_log_probs(model, hidden, targets)
    return [-part.sum().item() for part in log_probs.double().split(sizes)]


def perplexity_score(items: pd.DataFrame, task: str, seed: int = 0) -> Score:
    """Perplexity of the ``nll`` rows of ``task``, with a bootstrap over items (percentile interval, 95 %).

    Raises:
        UserError: fewer than two items, or a perplexity that is not a finite number.
    """
    chosen = items[(items["task"] == task) & (items["metric"] == "nll")]
    nll, tokens = chosen["value"].to_numpy(float), chosen["weight"].to_numpy(float)
    if len(chosen) < 2:
        raise UserError(f"{task}: {len(chosen)} held-out documents give no interval; raise max_tokens")
    mean = nll.sum() / tokens.sum()
    if not mean < _OVERFLOW:
        raise UserError(f"{task}: the model's mean negative log-likelihood is {mean}; its weights are broken")
    drawn = bootstrap(
        (nll, tokens),
        _mean_nll,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return Score(
        task=task,
        metric="perplexity",
        value=math.exp(mean),
        standard_error=float(np.exp(drawn.bootstrap_distribution).std(ddof=1)),
        low=math.exp(drawn.confidence_interval.low),
        high=math.exp(drawn.confidence_interval.high),
        n=len(chosen),
        chance=None,
    )


def _mean_nll(nll: np.ndarray, tokens: np.ndarray, axis: int) -> np.ndarray:
    return nll.sum(axis) / tokens.sum(axis)
