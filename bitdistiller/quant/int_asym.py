r"""INT-Asym: evenly spaced levels between a group's least and greatest weight.

With :math:`q_{max} = 2^b - 1`, scale :math:`s = (high - low) / q_{max}` and a whole zero point
:math:`z = -\lfloor low / s + 1/2 \rfloor` in :math:`[0, q_{max}]`,

    code = clamp(floor(w / s + z + 1/2), 0, q_max),      value = s * (code - z).

Ties round up everywhere, zero point included: with the usual half-to-even a group whose ends both lie on a tie would
lose its last code when quantized a second time.

At 1 bit the levels are {0, s} or {-s, 0} with s = high - low: one sign of weights has no level but zero.
"""

from dataclasses import dataclass

from torch import Tensor

from bitdistiller.quant.format import RangeFormat, Scales, nonzero, snap_down


@dataclass(frozen=True)
class IntAsym(RangeFormat):
    """Asymmetric integer format, 1 to 8 bits (BitDistiller, arXiv 2402.10631, section 3.1: INT at 2 bits)."""

    name = "int-asym"
    supported_bits = range(1, 9)
    source = "BitDistiller, arXiv 2402.10631, section 3.1"
    stored = ("scale", "zero")
    promises = frozenset({"idempotent", "nearest", "half-step", "scale-equivariant", "monotone", "zero-is-level"})

    def fit(self, low: Tensor, high: Tensor) -> Scales:
        top = 2**self.bits - 1
        scale = snap_down((high - low) / top)
        zero = -(low / nonzero(scale) + 0.5).floor()
        return scale, zero.clamp(0, top)

    def encode(self, groups: Tensor, scales: Scales) -> Tensor:
        scale, zero = scales
        return (groups / nonzero(scale)).add_(zero + 0.5).floor_().clamp_(0, 2**self.bits - 1)

    def decode(self, codes: Tensor, scales: Scales) -> Tensor:
        scale, zero = scales
        return codes.sub_(zero).mul_(scale)

    def scale_bits(self) -> int:
        return 16 + self.bits
