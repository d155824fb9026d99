"""What quantization leaves of a weight matrix: zeros, entropy of the codes, squared error.

Entropy is that of the codes within a group, in bits a weight, averaged over groups: the same code means another value
in a group with another zero point. It cannot exceed the bits of the format, and says how many of them are used.
"""

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from bitdistiller.quant.format import Quantized, split_groups


@dataclass(frozen=True)
class Measurement:
    """Sums over a matrix, so that those of several matrices add up (``total``).

    Attributes:
        weights: how many there are.
        zero: how many have the low-bit value 0.
        code_bits: entropy of the codes in bits, times the weights.
        squared_error: squared distance of the low-bit values from what they stand for.
        square: squared norm of what they stand for.
    """

    weights: int
    zero: int
    code_bits: float
    squared_error: float
    square: float

    @property
    def zeros(self) -> float:
        """Share of weights whose low-bit value is 0."""
        return self.zero / self.weights

    @property
    def entropy(self) -> float:
        """Bits a weight, at most the format's."""
        return self.code_bits / self.weights

    @property
    def error(self) -> float:
        """Squared error relative to the squared norm; 0 if both are 0."""
        return self.squared_error / self.square if self.squared_error else 0.0


@torch.no_grad()
def measure(q: Quantized, original: Float[Tensor, "O I"]) -> Measurement:
    """Measure a quantized matrix against the full-precision one that it stands for."""
    values = q.dequantize()
    parts = split_groups(q.codes, q.format.group_size)
    return Measurement(
        weights=values.numel(),
        zero=int((values == 0).sum()),
        code_bits=sum(_code_bits(codes, q.format.level_count) for codes in parts),
        squared_error=(values - original).double().square().sum().item(),
        square=original.double().square().sum().item(),
    )


def total(measurements: Iterable[Measurement]) -> Measurement:
    """The measurement of several matrices together."""
    return Measurement(*(sum(column) for column in zip(*map(astuple, measurements), strict=True)))


def _code_bits(codes: UInt8[Tensor, "O G n"], level_count: int) -> float:
    """Sum over groups of n times the entropy of the group's codes, in bits."""
    ones = torch.ones(codes.shape, device=codes.device)
    counts = torch.zeros(*codes.shape[:2], level_count, device=codes.device).scatter_add_(-1, codes.long(), ones)
    share = counts / codes.shape[-1]
    return -torch.xlogy(share, share).sum().item() / math.log(2) * codes.shape[-1]
