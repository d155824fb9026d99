"""Log-probabilities of given tokens, without ever holding the logits of a whole batch.

A causal LM's output layer is as large as its vocabulary: for SmolLM2, logits of 2,048 positions in fp32 are 400 MB, and
most of them are of padding or of context that nobody scores. So the network below the output layer runs once,
the hidden states of the scored positions are picked out, and only those are projected, a chunk at a time. A chunk
keeps the dtype of the matrix product and becomes fp32 in blocks that stay in the processor's cache.
That is exact for every model whose logits are its output layer applied to its last hidden state; models that
scale or cap their logits afterwards are refused.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from bitdistiller.device import has_bf16
from bitdistiller.errors import UserError

_CHUNK_LOGITS = 2**22  # of one matrix product, which a few rows at a time would slow down
_BLOCK_LOGITS = 2**20  # in fp32 at a time: 4 MiB a temporary
_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


@contextmanager
def inference(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode, no gradients, bf16 autocast where bf16 is native; the model's mode is put back afterwards.

    Raises:
        UserError: the model transforms its logits after the output layer.
    """
    for name in _LOGIT_TRANSFORMS:
        if getattr(model.config, name, None):
            kind = model.config.model_type
            raise UserError(f"{kind} models set {name}, which scoring from hidden states would ignore")
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=has_bf16()):
            yield
    finally:
        model.train(training)


def hidden_states(model: PreTrainedModel, input_ids: Int[Tensor, "B T"], **inputs: Tensor) -> Float[Tensor, "B T H"]:
    """Last hidden states, after the final norm: what the output layer reads."""
    return model.base_model(input_ids=input_ids, use_cache=False, **inputs).last_hidden_state


def logit_blocks(model: PreTrainedModel, hidden: Float[Tensor, "N H"]) -> Iterator[tuple[slice, Float[Tensor, "n V"]]]:
    """Logits in fp32 of a few positions at a time, with the slice of ``hidden`` that they belong to.

    Two models with one vocabulary get the same slices.
    """
    head, start = model.get_output_embeddings(), 0
    vocabulary = head.weight.shape[0]
    rows, block = max(1, _CHUNK_LOGITS // vocabulary), max(1, _BLOCK_LOGITS // vocabulary)
    for states in hidden.split(rows):
        for logits in head(states).split(block):
            yield slice(start, start + len(logits)), logits.float()
            start += len(logits)


def target_log_probs(
    model: PreTrainedModel, hidden: Float[Tensor, "N H"], targets: Int[Tensor, " N"]
) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """Log-probability of each target token in fp32, and whether no token is more probable."""
    log_probs, greedy = [], []
    for rows, logits in logit_blocks(model, hidden):
        chosen = logits.gather(1, targets[rows, None]).squeeze(1)
        log_probs.append(chosen - logits.logsumexp(dim=1))
        greedy.append(chosen == logits.amax(dim=1))  # several times faster than argmax
    return torch.cat(log_probs), torch.cat(greedy)


def by_length(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices grouped into batches of at most ``batch_tokens`` padded tokens, longest first (one item at least)."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def common_length(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences have in common at their beginning."""
    first, last = min(sequences), max(sequences)  # all others lie between these two, and begin as both do
    differ = (place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return next(differ, len(first))
