r"""NF-Asym: levels at the quantiles of a normal distribution, with one scale for each sign.

The greatest weight of a group scales its positive levels and the least weight its negative ones, so that both tails are
met exactly and zero stays a level:

    value = level * (high if level > 0 else -low).

A weight on the midpoint of two levels takes the upper one, as in BitDistiller. The scale of a sign whose largest weight
is below the smallest normal fp16 number (6e-5) is 0 and its weights become 0: in the subnormal range fp16 scales are
too coarse to quantize twice with the same result.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from bitdistiller.quant.format import FP16_MAX, RangeFormat, Scales

_FP16_MIN_NORMAL = 2.0**-14

# 2 bits: QLoRA's construction (arXiv 2305.14314, section 3) with offset 0.9677083, the 2-bit case.
# 3 bits: AFPQ (arXiv 2311.01792) and BitDistiller's quantizer. 4 bits: QLoRA, appendix E.
LEVELS = {
    2: (-1.0, 0.0, 0.3379120, 1.0),
    3: (-1.0, -0.5350227, -0.2469314, 0.0, 0.1833375, 0.3819939, 0.6229857, 1.0),
    4: (
        -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
        0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class NfAsym(RangeFormat):
    """Asymmetric normal-float format, 2 to 4 bits (AFPQ, arXiv 2311.01792; BitDistiller section 3.1: NF at 3 bits)."""

    name = "nf-asym"
    supported_bits = range(2, 5)
    source = "AFPQ, arXiv 2311.01792; BitDistiller, arXiv 2402.10631, section 3.1"
    stored = ("scale", "negative_scale")
    promises = frozenset({"idempotent", "nearest", "half-step", "scale-equivariant", "monotone", "zero-is-level"})

    def fit(self, low: Tensor, high: Tensor) -> Scales:
        return _snap(high), _snap(-low)

    def encode(self, groups: Tensor, scales: Scales) -> Tensor:
        positive, negative = (scale.where(scale > 0, torch.inf) for scale in scales)
        normal = groups / torch.where(groups > 0, positive, negative)
        levels = LEVELS[self.bits]
        codes = torch.zeros(groups.shape, dtype=torch.uint8, device=groups.device)
        for below, above in pairwise(levels):  # comparing with each midpoint is five times faster than bucketize
            codes += (normal >= (below + above) / 2).view(torch.uint8)
        return codes.float()

    def decode(self, codes: Tensor, scales: Scales) -> Tensor:
        positive, negative = scales
        levels = torch.tensor(LEVELS[self.bits], device=codes.device)
        values = levels.index_select(0, codes.flatten().int()).view(codes.shape)
        return values.mul_(torch.where(values > 0, positive, negative))


def _snap(scale: Tensor) -> Tensor:
    half = scale.clamp_max(FP16_MAX).to(torch.float16).float()
    return half.where(half >= _FP16_MIN_NORMAL, 0.0)
