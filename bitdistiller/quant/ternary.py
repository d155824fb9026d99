r"""Ternary: levels -s, 0, s. Two rules for the scale and for who becomes zero.

* ``ternary``: :math:`s = \mathrm{mean} |w|`, and a weight is rounded to the nearest level (BitNet b1.58);
* ``ternary-threshold``: weights below :math:`0.7\, \mathrm{mean} |w|` become zero and s is the mean magnitude of the
  others, close to the least squared error for normal weights (Ternary Weight Networks).

Both papers take one scale a matrix; here it is one a group, as in every format of this library. Five codes share a
byte, since :math:`3^5 = 243`: 1.6 bits a weight.
"""

from dataclasses import dataclass

from torch import Tensor

from bitdistiller.quant.format import Format, Scales, nonzero, to_half

THRESHOLD = 0.7  # of the mean magnitude (Ternary Weight Networks, arXiv 1605.04711)


class _ThreeLevels(Format):
    supported_bits = range(2, 3)
    level_count, code_bits = 3, 8 / 5  # five codes share a byte

    def decode(self, codes: Tensor, scales: Scales) -> Tensor:
        return codes.sub_(1).mul_(scales[0])


@dataclass(frozen=True)
class Ternary(_ThreeLevels):
    """Ternary weights by the mean magnitude (BitNet b1.58, arXiv 2402.17764, equations 1 to 3)."""

    name = "ternary"
    source = "BitNet b1.58, arXiv 2402.17764, equations 1 to 3"
    promises = frozenset({"nearest", "sign-equivariant", "scale-equivariant", "monotone", "zero-is-level"})

    def fit_groups(self, groups: Tensor) -> Scales:
        return (to_half(groups.abs().mean(-1, keepdim=True)),)

    def encode(self, groups: Tensor, scales: Scales) -> Tensor:
        return (groups / nonzero(scales[0])).round_().clamp_(-1, 1).add_(1)


@dataclass(frozen=True)
class TernaryThreshold(_ThreeLevels):
    """Ternary weights by a threshold (Ternary Weight Networks, arXiv 1605.04711)."""

    name = "ternary-threshold"
    source = "Ternary Weight Networks, arXiv 1605.04711"
    promises = frozenset({"idempotent", "sign-equivariant", "scale-equivariant", "monotone", "zero-is-level"})

    def fit_groups(self, groups: Tensor) -> Scales:
        magnitude, kept = groups.abs(), self._kept(groups)
        total = magnitude.mul_(kept).sum(-1, keepdim=True)
        return (to_half(total / kept.sum(-1, keepdim=True).clamp_min(1)),)

    def encode(self, groups: Tensor, scales: Scales) -> Tensor:
        return groups.sign().mul_(self._kept(groups)).add_(1)

    def _kept(self, groups: Tensor) -> Tensor:
        magnitude = groups.abs()
        return magnitude > THRESHOLD * magnitude.mean(-1, keepdim=True)
