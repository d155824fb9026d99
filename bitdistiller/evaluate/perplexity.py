r"""Perplexity on held-out text: exp of the total negative log-likelihood over the total number of tokens.

Every document begins after a start token, so that its first token is predicted too. It is cut into
windows of inputs that do not overlap; the targets are the inputs moved by one, so every token is predicted exactly
once, the first of a window from nothing but the last token of the window before. Overlapping windows would give each
token more context and a lower number, at a multiple of the cost; published tables use disjoint windows.

At very few bits a handful of tokens can be all of it, so the share that the worst 1 % of tokens make goes with it: 1 %
if all tokens cost the same, 100 % if the others cost nothing. (With share s the perplexity of the others is
perplexity ** ((1 - s) / 0.99).) With q the negative log-likelihood that 1 % of all T tokens exceed, those tokens sum to
:math:`\sum_t \max(x_t - q, 0) + 0.01\, q\, T`, the expected shortfall of Rockafellar and Uryasev (2000). In that form
it is a sum over documents like every other score here, and since it does not change with q to first order, resamples
may keep the q of the whole text.

Where the full-precision original is at hand, it reads the same windows in the same loop; see ``reference``.

The uncertainty that matters is which documents were drawn, not which tokens: tokens of one document share its topic.
So the interval resamples documents. A text that is one single document (WikiText-2 as perplexity papers
read it) is resampled by windows.
"""

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from scipy.stats import bootstrap
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitdistiller.data.blocks import encode, start_token
from bitdistiller.data.text import Document
from bitdistiller.errors import UserError
from bitdistiller.evaluate.likelihood import by_length, hidden_states, inference, target_log_probs
from bitdistiller.evaluate.reference import compare_with_original
from bitdistiller.results import ITEM_COLUMNS, Score

RESAMPLES = 2000
WORST = 0.01  # of tokens
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
    first, left = start_token(tokenizer), max_tokens
    for document in sorted(documents, key=lambda document: document.id):
        stream = [first, *encode(tokenizer, [document.text])[0]][: left + 1]
        for start in range(0, len(stream) - 1, length):
            part = stream[start : start + length + 1]
            item = document.id if len(documents) > 1 else f"{document.id}-{start // length}"
            found.append(Window(item, part[:-1], part[1:]))
        left -= len(stream) - 1
        if left == 0:
            break
    return found


def document_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    window: int,
    max_tokens: int,
    batch_tokens: int,
    task: str = "perplexity",
    original: PreTrainedModel | None = None,
) -> pd.DataFrame:
    """What a model makes of each document, as item rows (see ``bitdistiller.results``).

    Args:
        documents: scored in the order of their ids; the one that passes ``max_tokens`` is cut there.
        window: input tokens that the model sees at once.
        max_tokens: predicted tokens in all.
        batch_tokens: padded tokens of one forward pass.
        task: name in the ``task`` column.
        original: the full-precision model to compare with; without it there are no rows of ``kl`` and ``agreement``.

    Raises:
        UserError: no text, a window longer than the model's context, a tokenizer without end-of-text token, or an
            original with another number of tokens.
    """
    _refuse(model, tokenizer, window, task)
    parts = windows(tokenizer, documents, window, max_tokens)
    if not parts:
        raise UserError(f"{task}: no held-out text to score in {len(documents)} documents")
    totals: dict[str, Counter[str]] = {part.item: Counter() for part in parts}
    nll: dict[str, list[Tensor]] = {part.item: [] for part in parts}
    progress = tqdm(total=sum(len(part.targets) for part in parts), desc=task, unit="tok", disable=None)
    with inference(model), nullcontext() if original is None else inference(original), progress:
        for batch in by_length([len(part.inputs) for part in parts], batch_tokens):
            chosen = [parts[index] for index in batch]
            for part, scores in zip(chosen, _token_scores(model, original, chosen), strict=True):
                totals[part.item].update({metric: values.sum().item() for metric, values in scores.items()})
                nll[part.item].append(scores["nll"])
                progress.update(len(part.targets))
    tokens = {item: torch.cat(values).numpy() for item, values in nll.items()}
    rows = [
        (task, item, metric, totals[item][metric], float(len(tokens[item])))
        for metric in (["nll"] if original is None else ["nll", "kl", "agreement"])
        for item in tokens
    ]
    worst = worst_share(list(tokens.values()))
    rows += [(task, item, "worst_share", *pair) for item, pair in zip(tokens, worst.tolist(), strict=True)]
    return pd.DataFrame(rows, columns=ITEM_COLUMNS)


def _refuse(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, window: int, task: str) -> None:
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and window > context:
        raise UserError(f"{task}: window {window} is longer than the model's context of {context} tokens")
    if tokenizer.eos_token_id is None:
        raise UserError(f"{task}: the tokenizer has no end-of-text token to start a document with")


def _token_scores(
    model: PreTrainedModel, original: PreTrainedModel | None, batch: Sequence[Window]
) -> list[dict[str, Float64[Tensor, " n"]]]:
    """What each metric is at the tokens of each window."""
    inputs = pad_sequence([torch.tensor(part.inputs) for part in batch], batch_first=True).to(model.device)
    sizes = [len(part.targets) for part in batch]
    # Padding stands to the right and attention is causal: no real position sees it, so no mask is needed.
    real = (torch.arange(inputs.shape[1])[None] < torch.tensor(sizes)[:, None]).to(model.device)
    targets = torch.tensor([token for part in batch for token in part.targets], device=model.device)
    hidden = hidden_states(model, inputs)[real]
    if original is None:
        found = {"nll": -target_log_probs(model, hidden, targets)[0]}
    else:
        expected = hidden_states(original, inputs)[real]
        log_probs, kl, agreement = compare_with_original(model, hidden, original, expected, targets)
        found = {"nll": -log_probs, "kl": kl, "agreement": agreement}
    split = [values.double().cpu().split(sizes) for values in found.values()]
    return [dict(zip(found, values, strict=True)) for values in zip(*split, strict=True)]


def worst_share(nll: Sequence[np.ndarray]) -> np.ndarray:
    """Of each document its part of the worst 1 % of all tokens and of all tokens, in nats.

    Args:
        nll: negative log-likelihoods of each document's tokens.

    Returns:
        Two columns, a row a document; the share is the sum of the first over the sum of the second.
    """
    tokens = np.concatenate(nll)
    place = math.ceil(WORST * len(tokens))  # of the threshold among the tokens, worst first
    threshold = np.partition(tokens, -place)[-place]
    return np.array(
        [(np.maximum(part - threshold, 0).sum() + WORST * threshold * len(part), part.sum()) for part in nll]
    )


def scores_of_documents(items: pd.DataFrame, task: str, seed: int = 0) -> list[Score]:
    """Perplexity and what else there are rows of for ``task``, with a bootstrap over its documents.

    Intervals are percentiles (95 %); all scores see the same resamples.

    Raises:
        UserError: fewer than two documents, or a perplexity that is not a finite number.
    """
    nll = _column(items, task, "nll")
    if len(nll) < 2:
        raise UserError(f"{task}: {len(nll)} held-out documents give no interval; raise max_tokens")
    mean = nll[:, 0].sum() / nll[:, 1].sum()
    if not mean < _OVERFLOW:
        raise UserError(f"{task}: the model's mean negative log-likelihood is {mean}; its weights are broken")
    columns = {metric: _column(items, task, metric) for metric in ("worst_share", "kl", "agreement")}
    columns = {"perplexity": nll, **columns}
    return [ratio_score(task, metric, column, seed) for metric, column in columns.items() if len(column)]


def _column(items: pd.DataFrame, task: str, metric: str) -> np.ndarray:
    chosen = items[(items["task"] == task) & (items["metric"] == metric)]
    return chosen[["value", "weight"]].to_numpy(float)


def ratio_score(task: str, metric: str, column: np.ndarray, seed: int) -> Score:
    """The sum of values over the sum of weights of items, with a percentile bootstrap over items.

    Args:
        column: (n, 2), value and weight of each item; for ``perplexity`` the score is the exponential.
    """
    drawn = bootstrap(
        tuple(column.T),
        _ratio,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    resampled, bounds = drawn.bootstrap_distribution, drawn.confidence_interval
    value, low, high = _ratio(*column.T, axis=0), bounds.low, bounds.high
    if metric == "perplexity":
        (value, low, high), resampled = map(math.exp, (value, low, high)), np.exp(resampled)
    return Score(
        task=task,
        metric=metric,
        value=value,
        standard_error=resampled.std(ddof=1),
        low=low,
        high=high,
        n=len(column),
        chance=None,
    )


def _ratio(values: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray | np.floating:
    return values.sum(axis) / weights.sum(axis)
