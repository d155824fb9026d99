r"""Learned scales: the step of each group is a parameter of its own, trained by LSQ's gradient.

For a format whose values are :math:`\hat w = s \cdot u(c)`, a multiple of the scale s for each code c,

.. math:: \frac{\partial \hat w}{\partial s} = u - \frac{w}{s}\,[\text{inside}], \qquad
          \frac{\partial \hat w}{\partial w} = [\text{inside}],

where a weight is inside when it lies in the range that the levels cover (``Format.unsaturated``). The scale's gradient
is multiplied by
:math:`1 / \sqrt{n\, q}` for groups of n weights and q the greatest multiple, so that scales move about as fast as
weights (LSQ, arXiv 1902.08153, section 2). Zero points stay where the initial fit put them. The forward pass reads the
scale snapped to fp16, what a packed checkpoint will hold.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bitdistiller.errors import UserError
from bitdistiller.quant.format import Format, Quantized, nonzero, split_groups, to_half

LEARNABLE = ("int-asym", "seq", "seq-ternary")
_LEAST = 2.0**-14  # the least normal fp16 number: below it scales are too coarse to be trained


class _Lsq(torch.autograd.Function):
    @staticmethod
    def forward(ctx, groups: Tensor, scale: Tensor, fmt: Format, rest: tuple[Tensor, ...]) -> Tensor:
        scales = (to_half(scale.clamp_min(_LEAST)), *rest)
        values = fmt.decode(fmt.encode(groups, scales), scales)
        (low, high), (least, greatest) = fmt.unsaturated(scales), fmt.outermost(scales)
        ctx.save_for_backward(groups, scales[0], values, (groups >= low) & (groups <= high))
        ctx.rate = (groups.shape[-1] * (torch.maximum(-least, greatest) / nonzero(scales[0]))).rsqrt()
        return values

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        groups, scale, values, inside = ctx.saved_tensors
        slope = (values - groups * inside) / scale
        return grad * inside, (grad * slope).sum(-1, keepdim=True) * ctx.rate, None, None


def lsq_quantize(
    groups: Float[Tensor, "O G n"], scale: Float[Tensor, "O G 1"], fmt: Format, rest: tuple[Tensor, ...] = ()
) -> Float[Tensor, "O G n"]:
    """Low-bit values of groups under given scales, with LSQ's gradients to weights and scales.

    Args:
        groups: latent weights.
        scale: the learned scale of each group; below 2^-14 it counts as 2^-14.
        fmt: a format in ``LEARNABLE``.
        rest: what else the format stores for a group (zero points), held fixed.
    """
    return _Lsq.apply(groups, scale, fmt, rest)


class LearnedScaleLinear(nn.Linear):
    """A Linear whose weight is fake-quantized with learned scales; made by ``learn_scales``.

    ``scale`` has one row an output and one column a group. Its other group numbers are buffers.
    """

    format: Format

    def forward(self, x: Tensor) -> Tensor:
        parts, start = [], 0
        for groups in split_groups(self.weight.float(), self.format.group_size):
            own = slice(start, start + groups.shape[1])
            rest = tuple(getattr(self, name)[:, own, None] for name in self.format.stored[1:])
            parts.append(lsq_quantize(groups, self.scale[:, own, None], self.format, rest).flatten(1))
            start = own.stop
        return F.linear(x, torch.cat(parts, dim=1).to(self.weight.dtype), self.bias)

    @torch.no_grad()
    def quantized(self) -> Quantized:
        """Codes and scales of the weight as it stands."""
        fmt, codes, start = self.format, [], 0
        scales = (to_half(self.scale.clamp_min(_LEAST)), *(getattr(self, name) for name in fmt.stored[1:]))
        for groups in split_groups(self.weight.float(), fmt.group_size):
            own = slice(start, start + groups.shape[1])
            codes.append(fmt.encode(groups, tuple(s[:, own, None] for s in scales)).flatten(1))
            start = own.stop
        return Quantized(fmt, torch.cat(codes, dim=1).to(torch.uint8), scales, self.weight.dtype)


def learn_scales(layer: nn.Linear, fmt: Format) -> LearnedScaleLinear:
    """Turn a Linear, in place, into one with learned scales that start from the format's own fit.

    Raises:
        UserError: a format whose values are not multiples of one scale.
    """
    if fmt.name not in LEARNABLE:
        raise UserError(f"format {fmt.name} has no scale to learn; choose one of {', '.join(LEARNABLE)}")
    fitted = fmt.quantize(layer.weight.detach())
    layer.__class__ = LearnedScaleLinear
    layer.format, layer.scale = fmt, nn.Parameter(fitted.scale.clone())
    for name in fmt.stored[1:]:
        layer.register_buffer(name, getattr(fitted, name).clone())
    return layer
