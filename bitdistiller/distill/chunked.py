"""The distillation loss from hidden states, without ever holding whole logits.

With a vocabulary of 49,152 the fp32 logits of 2,048 tokens are 400 MB, and autograd keeps several such arrays. Here
student and teacher logits exist for ``CHUNK`` tokens at a time, in the dtype of the matrix products. The loss of a
chunk and its gradient with respect to the student's logits are formed at once (the closed forms of ``objective``), in
fp32 and for so few tokens that the dozen passes over them stay in the processor's cache; two more matrix products turn
the gradient into those of the hidden states and of the head. The backward pass then only scales what the forward pass
stored. Weights that are relative to a whole batch (TSLD) are summed on the way and divided out at the end.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bitdistiller.distill.objective import Objective

CHUNK = 1024  # tokens a matrix product: 96 MiB of bf16 logits at a vocabulary of 49,152
_BLOCK_LOGITS = 2**21  # logits that are worked on in fp32 at a time: 8 MiB a temporary


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, head, teacher_hidden, teacher_head, labels, objective, chunk):
        weight = head.to(teacher_head.dtype)
        total, weights = torch.zeros(2, device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        grad_head = torch.zeros(head.shape, device=head.device) if head.requires_grad else None
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            states = hidden[part].to(weight.dtype)
            logits = states @ weight.T
            teacher = teacher_hidden[part].to(weight.dtype) @ teacher_head.T
            loss, weighed = _replace_by_grad(logits, teacher, labels[part], objective)
            total, weights = total + loss, weights + weighed
            grad_hidden[part] = logits @ weight
            if grad_head is not None:
                grad_head += logits.T @ states
        scale = len(hidden) / weights if objective.weighs_tokens else None
        ctx.save_for_backward(grad_hidden, grad_head, scale)
        return total if scale is None else total * scale

    @staticmethod
    def backward(ctx, grad):
        grad_hidden, grad_head, scale = ctx.saved_tensors
        grad = grad if scale is None else grad * scale
        grad_head = None if grad_head is None else grad_head.mul_(grad)
        return grad_hidden.mul_(grad), grad_head, None, None, None, None, None


def _replace_by_grad(
    student: Float[Tensor, "n V"], teacher: Float[Tensor, "n V"], labels: Int[Tensor, " n"], objective: Objective
) -> tuple[Tensor, Tensor]:
    """Summed loss and summed weights; overwrites the student's logits by the gradient with respect to them."""
    total, weights = torch.zeros(2, device=student.device)
    rows = max(1, _BLOCK_LOGITS // student.shape[1])
    for block, taught, label in zip(student.split(rows), teacher.split(rows), labels.split(rows), strict=True):
        losses, grad = objective.tokens_and_grad(block, taught, label)
        if objective.weighs_tokens:
            weight = objective.weights(taught, label)
            weights, losses = weights + weight.sum(), losses * weight
            grad.mul_(weight.unsqueeze(-1))
        total = total + losses.sum()
        block.copy_(grad)
    return total, weights


def chunked_loss(
    hidden: Float[Tensor, "N H"],
    head: Float[Tensor, "V H"],
    teacher_hidden: Float[Tensor, "N K"],
    teacher_head: Float[Tensor, "V K"],
    labels: Int[Tensor, " N"],
    objective: Objective,
    chunk: int = CHUNK,
) -> Float[Tensor, ""]:
    """Sum of the objective over N tokens, in nats, with gradients to ``hidden`` and ``head``; backward may run once.

    For CAKLD it equals ``cakld(hidden @ head.T, teacher_hidden @ teacher_head.T, gamma) * N`` up to rounding, and so on
    for the others. Matrix products run in the dtype of ``teacher_head``, everything else in fp32.
    """
    return _ChunkedLoss.apply(hidden, head, teacher_hidden, teacher_head, labels, objective, chunk)
