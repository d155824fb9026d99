r"""SEQ, stretched elastic quantization: a grid that is balanced around zero and leaves no code unused.

With L levels and :math:`\alpha = \max |w|` (which ParetoQ then learns; see ``bitdistiller.quant.learned``),

    value = alpha * (2 * code - (L - 1)) / L,      code = the nearest of 0 ... L - 1.

At 2 bits (L = 4) the levels are :math:`\pm \alpha / 4` and :math:`\pm 3 \alpha / 4`: two for each sign, none is zero.
The ternary grid (L = 3) is :math:`-2 \alpha / 3,\, 0,\, 2 \alpha / 3`.
"""

from dataclasses import dataclass

from torch import Tensor

from bitdistiller.quant.format import RangeFormat, Scales, nonzero, to_half


class _Stretched(RangeFormat):
    supported_bits = range(2, 3)

    def fit(self, low: Tensor, high: Tensor) -> Scales:
        return (to_half((-low).maximum(high)),)

    def unsaturated(self, scales: Scales) -> tuple[Tensor, Tensor]:
        """ParetoQ clips at -alpha and alpha, half a step beyond the outermost levels."""
        return -scales[0], scales[0]

    def encode(self, groups: Tensor, scales: Scales) -> Tensor:
        count = self.level_count
        whole, half = count // 2, (count - 1) / 2 - count // 2  # rounded before it is shifted: both signs lose alike
        normal = (groups / nonzero(scales[0])).mul_(count / 2).add_(half)
        return normal.round_().add_(whole).clamp_(0, count - 1)

    def decode(self, codes: Tensor, scales: Scales) -> Tensor:
        count = self.level_count
        return codes.mul_(2).sub_(count - 1).mul_(scales[0]).div_(count)


@dataclass(frozen=True)
class Seq(_Stretched):
    """Stretched elastic quantization with four levels (ParetoQ, arXiv 2502.02631)."""

    name = "seq"
    source = "ParetoQ, arXiv 2502.02631"
    promises = frozenset({"nearest", "half-step", "scale-equivariant", "monotone"})


@dataclass(frozen=True)
class SeqTernary(_Stretched):
    """Stretched elastic quantization with three levels (ParetoQ, arXiv 2502.02631)."""

    name = "seq-ternary"
    source = "ParetoQ, arXiv 2502.02631"
    level_count, code_bits = 3, 8 / 5  # five codes share a byte
    promises = frozenset({"nearest", "half-step", "sign-equivariant", "scale-equivariant", "monotone", "zero-is-level"})
