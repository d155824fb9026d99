r"""What a student minimises: a divergence from its teacher, softened by a temperature, and cross-entropy beside it.

For one token with label y and student distribution Q,

.. math:: T^2 \cdot D(\mathrm{teacher} / T, \mathrm{student} / T) + w \cdot (-\log Q_y),

logits divided by T on both sides. The factor :math:`T^2` keeps the first term's gradient from shrinking as T grows
(Hinton et al., arXiv 1503.02531, section 2.1). D is a divergence of ``bitdistiller.distill.losses``; cross-entropy
alone is an objective too, which learns from the text and asks no teacher.

Values and gradients come together, in closed form, because training needs both and autograd would keep several arrays
of vocabulary size alive to form the second.
"""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from bitdistiller.distill.losses import (
    JSD_BETA,
    Logits,
    cakld_tokens_and_grad,
    ce_tokens_and_grad,
    jsd_tokens_and_grad,
    tsld_weights,
)

FIXED_GAMMA = {"forward_kl": 0.0, "reverse_kl": 1.0, "tsld": 0.0}  # weight of reverse KL; CAKLD's is measured


@dataclass(frozen=True)
class Objective:
    """A training loss.

    Attributes:
        loss: ``cakld``, ``forward_kl``, ``reverse_kl``, ``jsd``, ``tsld`` or ``ce``.
        gamma: CAKLD's weight of reverse KL; others ignore it.
        temperature: T above.
        ce_weight: w above.
    """

    loss: str
    gamma: float = 0.0
    temperature: float = 1.0
    ce_weight: float = 0.0

    @property
    def weighs_tokens(self) -> bool:
        """Tokens weigh differently; their weights have to be scaled to mean 1 over a batch."""
        return self.loss == "tsld"

    def weights(self, teacher: Logits, labels: Int[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """Unscaled weight of every token, where ``weighs_tokens``."""
        return tsld_weights(teacher, labels)

    def tokens_and_grad(
        self, student: Logits, teacher: Logits, labels: Int[Tensor, "*t"]
    ) -> tuple[Float[Tensor, "*t"], Logits]:
        """Loss of every token, unweighted, and its gradient with respect to the student's logits, both in fp32."""
        if self.loss == "ce":
            return ce_tokens_and_grad(student, labels)
        losses, grad = self._divergence(student, teacher)
        if self.ce_weight:
            hard, hard_grad = ce_tokens_and_grad(student, labels)
            losses, grad = losses + self.ce_weight * hard, grad.add_(hard_grad, alpha=self.ce_weight)
        return losses, grad

    def _divergence(self, student: Logits, teacher: Logits) -> tuple[Float[Tensor, "*t"], Logits]:
        soft = self.temperature
        if soft != 1:
            student, teacher = student.float() / soft, teacher.float() / soft
        if self.loss == "jsd":
            losses, grad = jsd_tokens_and_grad(student, teacher, JSD_BETA)
        else:
            losses, grad = cakld_tokens_and_grad(student, teacher, FIXED_GAMMA.get(self.loss, self.gamma))
        return (losses, grad) if soft == 1 else (losses * soft**2, grad.mul_(soft))
