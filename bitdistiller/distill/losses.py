r"""Divergences between student and teacher, one pure function a token, one explicit reduction.

For one position with teacher :math:`P` and student :math:`Q` over the vocabulary:

* forward KL: :math:`KL(P \Vert Q)`, mode-covering;
* reverse KL: :math:`KL(Q \Vert P)`, mode-seeking;
* CAKLD: :math:`\gamma\, KL(Q \Vert P) + (1 - \gamma)\, KL(P \Vert Q)` (BitDistiller, arXiv 2402.10631, section 3.3),
  where gamma, the teacher's mean confidence in the training tokens, weighs mode-seeking up when the teacher is sure;
* JSD: :math:`\beta\, KL(P \Vert M) + (1 - \beta)\, KL(Q \Vert M)` with :math:`M = \beta P + (1 - \beta) Q` (GKD, arXiv
  2306.13649);
* TSLD: forward KL with tokens weighted by a softmax of the teacher's cross-entropy on the label, over a temperature
  of 10, scaled to mean 1 (token-scaled logit distillation, arXiv 2308.06744, whose released default that is).

The gradients with respect to the student's logits are known in closed form,

.. math::
    \text{CAKLD:} \quad & \gamma\, Q (\log Q - \log P - KL(Q \Vert P)) + (1 - \gamma)(Q - P), \\
    \text{JSD:} \quad & (1 - \beta)\, Q (\log Q - \log M - KL(Q \Vert M)),

which is what makes the training step lean (``bitdistiller.distill.chunked``).
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from bitdistiller.errors import UserError

Logits = Float[Tensor, "*t V"]
JSD_BETA = 0.5
TSLD_TEMPERATURE = 10.0


def forward_kl(student: Logits, teacher: Logits, mask: Bool[Tensor, "*t"] | None = None) -> Float[Tensor, ""]:
    """KL(teacher || student), mean over unmasked tokens, in nats."""
    return cakld(student, teacher, gamma=0.0, mask=mask)


def reverse_kl(student: Logits, teacher: Logits, mask: Bool[Tensor, "*t"] | None = None) -> Float[Tensor, ""]:
    """KL(student || teacher), mean over unmasked tokens, in nats."""
    return cakld(student, teacher, gamma=1.0, mask=mask)


def cakld(
    student: Logits, teacher: Logits, gamma: float = 0.7, mask: Bool[Tensor, "*t"] | None = None
) -> Float[Tensor, ""]:
    """Confidence-aware KL divergence, mean over unmasked tokens, in nats (BitDistiller, section 3.3).

    Args:
        student: (B, T, V) logits that receive gradient.
        teacher: (B, T, V) logits.
        gamma: weight of the reverse KL, in [0, 1].
        mask: (B, T), True where a token counts; all count without it.

    Raises:
        UserError: gamma outside [0, 1], shapes that differ, or no token that counts.
    """
    return masked_mean(cakld_tokens(student, teacher, gamma), mask)


def jsd(
    student: Logits, teacher: Logits, beta: float = JSD_BETA, mask: Bool[Tensor, "*t"] | None = None
) -> Float[Tensor, ""]:
    """Generalised Jensen-Shannon divergence, mean over unmasked tokens, in nats (GKD, arXiv 2306.13649, section 2)."""
    return masked_mean(jsd_tokens(student, teacher, beta), mask)


def tsld(
    student: Logits, teacher: Logits, labels: Int[Tensor, "*t"], mask: Bool[Tensor, "*t"] | None = None
) -> Float[Tensor, ""]:
    """Forward KL, tokens on which the teacher errs weighing more (arXiv 2308.06744), mean over unmasked tokens."""
    weight = tsld_weights(teacher, labels)
    return masked_mean(cakld_tokens(student, teacher, 0.0) * weight, mask) / masked_mean(weight, mask)


def tsld_weights(teacher: Logits, labels: Int[Tensor, "*t"]) -> Float[Tensor, "*t"]:
    """Unscaled weight of every token: exp(teacher's cross-entropy on the label / 10)."""
    loss = F.cross_entropy(teacher.float().flatten(0, -2), labels.flatten(), reduction="none")
    return (loss / TSLD_TEMPERATURE).exp().view(labels.shape)


def cakld_tokens(student: Logits, teacher: Logits, gamma: float) -> Float[Tensor, "*t"]:
    """CAKLD of every token; forward KL at gamma 0, reverse KL at gamma 1."""
    _check(student, teacher, gamma, "gamma")
    log_q, log_p = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    difference = log_q - log_p
    return gamma * (log_q.exp() * difference).sum(-1) - (1 - gamma) * (log_p.exp() * difference).sum(-1)


def jsd_tokens(student: Logits, teacher: Logits, beta: float) -> Float[Tensor, "*t"]:
    """Generalised JSD of every token."""
    _check(student, teacher, beta, "beta")
    log_q, log_p = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    if beta in (0, 1):
        return torch.zeros(log_p.shape[:-1], device=log_p.device)
    middle = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))  # both may underflow where it does not
    to_middle = [F.kl_div(middle, side, log_target=True, reduction="none").sum(-1) for side in (log_p, log_q)]
    return beta * to_middle[0] + (1 - beta) * to_middle[1]


@torch.no_grad()
def cakld_tokens_and_grad(student: Logits, teacher: Logits, gamma: float) -> tuple[Float[Tensor, "*t"], Logits]:
    """CAKLD of every token and its gradient with respect to the student's logits, in closed form."""
    q, p = (logits.softmax(-1, dtype=torch.float32) for logits in (student, teacher))
    difference = student.to(torch.float32, copy=True).sub_(teacher)
    # log q - log p is the difference of the logits and, for each token, of the logarithms of the partition functions
    log_z = [logits.amax(-1).float() - side.amax(-1).log() for logits, side in ((student, q), (teacher, p))]
    constant = log_z[1] - log_z[0]
    under_q, under_p = (torch.einsum("...v,...v->...", side, difference) for side in (q, p))
    losses = gamma * (under_q + constant) - (1 - gamma) * (under_p + constant)
    # gamma * q * (difference - under_q) + (1 - gamma) * (q - p), reusing the buffers
    factor = torch.add((1 - gamma) - gamma * under_q.unsqueeze(-1), difference, alpha=gamma, out=difference)
    return losses, factor.mul_(q).sub_(p, alpha=1 - gamma)


@torch.no_grad()
def jsd_tokens_and_grad(student: Logits, teacher: Logits, beta: float) -> tuple[Float[Tensor, "*t"], Logits]:
    """Generalised JSD of every token and its gradient with respect to the student's logits, in closed form."""
    losses = jsd_tokens(student, teacher, beta)
    if beta in (0, 1):
        return losses, torch.zeros_like(student, dtype=torch.float32)
    log_q, log_p = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    log_ratio = log_q - torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    q = log_q.exp()
    return losses, (1 - beta) * q * (log_ratio - (q * log_ratio).sum(-1, keepdim=True))


@torch.no_grad()
def ce_tokens_and_grad(student: Logits, labels: Int[Tensor, "*t"]) -> tuple[Float[Tensor, "*t"], Logits]:
    """Cross-entropy on the label of every token and its gradient with respect to the student's logits."""
    log_q = student.float().log_softmax(-1)
    where = labels.unsqueeze(-1)
    return -log_q.gather(-1, where).squeeze(-1), log_q.exp().scatter_add(-1, where, -torch.ones_like(log_q[..., :1]))


def masked_mean(values: Float[Tensor, "*t"], mask: Bool[Tensor, "*t"] | None) -> Float[Tensor, ""]:
    """The project's one reduction: the mean over tokens that count."""
    if mask is None:
        return values.mean()
    if mask.shape != values.shape:
        raise UserError(f"the mask has shape {tuple(mask.shape)}, the tokens {tuple(values.shape)}; they must be equal")
    if not mask.any():
        raise UserError("the mask excludes every token, so the loss has no value; check the padding")
    return values[mask.bool()].mean()


def _check(student: Tensor, teacher: Tensor, weight: float, name: str) -> None:
    if student.shape != teacher.shape:
        raise UserError(
            f"student logits have shape {tuple(student.shape)}, teacher logits {tuple(teacher.shape)}; "
            "a divergence needs the same tokens and the same vocabulary"
        )
    if not 0 <= weight <= 1:
        raise UserError(f"{name} must lie in [0, 1], not {weight}")
