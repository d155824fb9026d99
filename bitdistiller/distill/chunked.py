"""The distillation loss from hidden states, without ever holding whole logits.

With a vocabulary of 49,152 the fp32 logits of 2,048 tokens are 400 MB, and autograd keeps several such arrays. Here
student and teacher logits exist for ``CHUNK`` tokens at a time, in the dtype of the matrix products. The loss of a
chunk and its gradient with respect to the student's logits are formed at once (the closed form of
``losses.cakld_tokens_and_grad``), in fp32 and for so few tokens that the dozen passes over them stay in the processor's
cache; two more matrix products turn the gradient into those of the hidden states and of the head. The backward pass
then only scales what the forward pass stored.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from bitdistiller.distill.losses import cakld_tokens_and_grad

CHUNK = 1024  # tokens a matrix product: 96 MiB of bf16 logits at a vocabulary of 49,152
_BLOCK_LOGITS = 2**21  # logits that are worked on in fp32 at a time: 8 MiB a temporary


class _ChunkedCakld(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, head, teacher_hidden, teacher_head, gamma, chunk):
        weight = head.to(teacher_head.dtype)
        total = torch.zeros((), device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        grad_head = torch.zeros(head.shape, device=head.device) if head.requires_grad else None
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            states = hidden[part].to(weight.dtype)
            logits = states @ weight.T
            total += _replace_by_grad(logits, teacher_hidden[part].to(weight.dtype) @ teacher_head.T, gamma)
            grad_hidden[part] = logits @ weight
            if grad_head is not None:
                grad_head += logits.T @ states
        ctx.save_for_backward(grad_hidden, grad_head)
        return total

    @staticmethod
    def backward(ctx, grad):
        grad_hidden, grad_head = ctx.saved_tensors
        grad_head = None if grad_head is None else grad_head.mul_(grad)
        return grad_hidden.mul_(grad), grad_head, None, None, None, None


def _replace_by_grad(student: Float[Tensor, "n V"], teacher: Float[Tensor, "n V"], gamma: float) -> Float[Tensor, ""]:
    """Summed CAKLD; overwrites the student's logits by the gradient with respect to them."""
    total = torch.zeros((), device=student.device)
    rows = max(1, _BLOCK_LOGITS // student.shape[1])
    for student_block, teacher_block in zip(student.split(rows), teacher.split(rows), strict=True):
        losses, grad = cakld_tokens_and_grad(student_block, teacher_block, gamma)
        total += losses.sum()
        student_block.copy_(grad)
    return total


def chunked_cakld(
    hidden: Float[Tensor, "N H"],
    head: Float[Tensor, "V H"],
    teacher_hidden: Float[Tensor, "N K"],
    teacher_head: Float[Tensor, "V K"],
    gamma: float,
    chunk: int = CHUNK,
) -> Float[Tensor, ""]:
    """Sum of CAKLD over N tokens, in nats, with gradients to ``hidden`` and ``head``; backward may run once.

    Equals ``cakld(hidden @ head.T, teacher_hidden @ teacher_head.T, gamma) * N`` up to rounding. Matrix products run in
    the dtype of ``teacher_head``, everything else in fp32.
    """
    return _ChunkedCakld.apply(hidden, head, teacher_hidden, teacher_head, gamma, chunk)
