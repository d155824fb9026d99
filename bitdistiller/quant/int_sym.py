r"""INT-Sym: evenly spaced levels on both sides of zero, no zero point.

With :math:`q_{max} = 2^{b-1} - 1` and scale :math:`s = \max |w| / q_{max}`,

    code = clamp(round(w / s), -q_max, q_max) + q_max,      value = s * (code - q_max).

The code :math:`-2^{b-1}`, which two's complement would allow, is left out, so that the levels are symmetric: 3 at 2
bits, 15 at 4. Ties go to the even level, on both sides alike.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bitdistiller.quant.format import RangeFormat, Scales, nonzero, snap_down


@dataclass(frozen=True)
class IntSym(RangeFormat):
    """Symmetric integer format, 2 to 8 bits (LLM-QAT, arXiv 2305.17888, section 2.2)."""

    name = "int-sym"
    source = "LLM-QAT, arXiv 2305.17888, section 2.2"
    supported_bits = range(2, 9)
    promises = frozenset(
        {"idempotent", "nearest", "half-step", "sign-equivariant", "scale-equivariant", "monotone", "zero-is-level"}
    )

    @property
    def level_count(self) -> int:
        return 2**self.bits - 1

    @property
    def _top(self) -> int:
        return 2 ** (self.bits - 1) - 1

    def fit(self, low: Tensor, high: Tensor) -> Scales:
        return (snap_down(torch.maximum(-low, high) / self._top),)

    def encode(self, groups: Tensor, scales: Scales) -> Tensor:
        top = self._top
        return (groups / nonzero(scales[0])).round_().clamp_(-top, top).add_(top)

    def decode(self, codes: Tensor, scales: Scales) -> Tensor:
        return codes.sub_(self._top).mul_(scales[0])
