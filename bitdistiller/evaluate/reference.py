r"""A student beside the full-precision model it started from, token by token on the same text.

Perplexity says how well a student predicts text, not whether it still is the model that was compressed: errors that
help on one token and harm on the next cancel. Two numbers do not let them cancel:

* :math:`\mathrm{KL}(p \,\Vert\, q) = \sum_v p_v \log (p_v / q_v)`, in nats a token, with p the original's distribution
  over the next token and q the student's;
* top-1 agreement: the share of tokens at which both find the same token most probable.

Both are read off the logits of the forward pass that scores the text, in bf16 where that is native. A model is no
distance from itself then either, and the distances of micro-3m's students grow by about 0.0001 nats.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from bitdistiller.errors import UserError
from bitdistiller.evaluate.likelihood import logit_blocks


def compare_with_original(
    model: PreTrainedModel,
    hidden: Float[Tensor, "N H"],
    original: PreTrainedModel,
    original_hidden: Float[Tensor, "N K"],
    targets: Int[Tensor, " N"],
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """Of each token: its log-probability by ``model``, KL(original || model) in nats, and whether both top 1 agree.

    Args:
        hidden: last hidden states of ``model`` at the N positions that predict ``targets``.
        original_hidden: those of ``original``, which has the same vocabulary.

    Raises:
        UserError: output layers of different sizes, so distributions over different sets of tokens.
    """
    sizes = [len(part.get_output_embeddings().weight) for part in (model, original)]
    if sizes[0] != sizes[1]:
        raise UserError(f"a model of {sizes[0]:,} tokens cannot be compared with an original that has {sizes[1]:,}")
    log_probs, divergences, agreements = [], [], []
    blocks = zip(logit_blocks(model, hidden), logit_blocks(original, original_hidden), strict=True)
    for (rows, logits), (_, expected) in blocks:
        normalizer = logits.logsumexp(dim=1)
        log_probs.append(logits.gather(1, targets[rows, None]).squeeze(1) - normalizer)
        agreements.append(logits.argmax(dim=1) == expected.argmax(dim=1))
        student = logits.sub_(normalizer[:, None])
        teacher = expected.sub_(expected.logsumexp(dim=1, keepdim=True))
        # Nothing but rounding takes a sum below 0.
        divergences.append(student.sub_(teacher).neg_().mul_(teacher.exp_()).sum(dim=1).clamp_min_(0))
    return torch.cat(log_probs), torch.cat(divergences), torch.cat(agreements)
