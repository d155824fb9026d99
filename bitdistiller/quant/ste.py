"""Fake quantization: low-bit values forward, straight-through gradient backward.

The backward pass is written out instead of composed from ``round`` and ``clamp``: what a composition does at the
outermost levels depends on the gradient that a PyTorch release gives ``clamp`` at its bounds, and there is where
clipping puts many weights.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from bitdistiller.quant.format import Format


class _StraightThrough(torch.autograd.Function):
    """Forward: low-bit values. Backward: the gradient passes unchanged to every latent weight."""

    @staticmethod
    def forward(ctx, w: Tensor, fmt: Format) -> Tensor:
        return fmt.round(w)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def fake_quantize(w: Float[Tensor, "O I"], fmt: Format) -> Float[Tensor, "O I"]:
    """Values of ``fmt.quantize(w).dequantize()``, exactly, with a pass-through gradient (arXiv 1308.3432)."""
    return _StraightThrough.apply(w, fmt)
