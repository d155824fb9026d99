r"""Fake quantization: low-bit values forward, straight-through gradient backward.

Rounding has no useful derivative, so a straight-through estimator stands in for it: the gradient of a low-bit value
becomes that of its latent weight, times a factor that depends on where the weight lies in the range from ``low`` to
``high`` that its group's levels cover (``Format.unsaturated``: from the least to the greatest level, in most formats):

* ``pass-through``: 1 everywhere (Bengio et al., arXiv 1308.3432; BitDistiller's own);
* ``clipped``: 1 from ``low`` to ``high``, both included, and 0 beyond: a weight that saturates is left where it is
  (Binarized Neural Networks, arXiv 1602.02830, section 1.3);
* ``tanh``: :math:`1 - \tanh^2(w / high)` on the positive side and the same with ``-low`` on the negative one: the
  derivative of a soft staircase, which fades out instead of stopping.

The backward pass is written out instead of composed from ``round`` and ``clamp``: what a composition does at the
outermost levels depends on the gradient that a PyTorch release gives ``clamp`` at its bounds, and there is where
clipping puts many weights. It was 1 until PyTorch 2.13 and is 0 since 2.14 (pytorch/pytorch#195931): the same code,
trained with a newer release, would leave every weight on an outermost level where it is.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from bitdistiller.errors import UserError
from bitdistiller.quant.format import Format, map_groups

PASS_THROUGH = "pass-through"


def _clipped(groups: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return ((groups >= low) & (groups <= high)).float()


def _tanh(groups: Tensor, low: Tensor, high: Tensor) -> Tensor:
    bound = torch.where(groups > 0, high, -low).clamp_min(torch.finfo(groups.dtype).tiny)
    return 1 - torch.tanh(groups / bound).square()


_FACTORS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"clipped": _clipped, "tanh": _tanh}
ESTIMATORS = (PASS_THROUGH, *_FACTORS)


class _StraightThrough(torch.autograd.Function):
    """Forward: low-bit values. Backward: the estimator's share of the gradient to every latent weight."""

    @staticmethod
    def forward(ctx, w: Tensor, fmt: Format, estimator: str) -> Tensor:
        ctx.factor, values = None, fmt.round(w)
        if estimator != PASS_THROUGH:
            ctx.factor = map_groups(lambda groups: _factor(groups, fmt, estimator), w.float(), fmt.group_size)
        return values

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad if ctx.factor is None else grad * ctx.factor.to(grad.dtype), None, None


def _factor(groups: Float[Tensor, "O G n"], fmt: Format, estimator: str) -> Float[Tensor, "O G n"]:
    return _FACTORS[estimator](groups, *fmt.unsaturated(fmt.fit_groups(groups)))


def fake_quantize(w: Float[Tensor, "O I"], fmt: Format, estimator: str = PASS_THROUGH) -> Float[Tensor, "O I"]:
    """Values of ``fmt.quantize(w).dequantize()``, exactly, with a straight-through gradient.

    Args:
        w: latent weights.
        fmt: the format.
        estimator: ``pass-through``, ``clipped`` or ``tanh``.

    Raises:
        UserError: an estimator of another name, or weights that ``quantize`` refuses.
    """
    if estimator not in ESTIMATORS:
        raise UserError(f"unknown straight-through estimator {estimator!r}: choose one of {', '.join(ESTIMATORS)}")
    return _StraightThrough.apply(w, fmt, estimator)
