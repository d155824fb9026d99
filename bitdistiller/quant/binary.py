r"""Binary: every weight is one of two values, and none of them is zero.

* ``binary``: :math:`s \cdot \mathrm{sign}(w)` with :math:`s = \mathrm{mean} |w|`, which leaves the least squared error;
* ``binary-shifted``: :math:`m + s \cdot \mathrm{sign}(w - m)` with m the mean of the group, s that of :math:`|w - m|`.

The sign of zero is plus: a code has to be one of two. INT-Asym at 1 bit, by contrast, has zero as one of its levels.
"""

from dataclasses import dataclass

from torch import Tensor

from bitdistiller.quant.format import Format, Scales, to_half


@dataclass(frozen=True)
class Binary(Format):
    """Sign times mean magnitude, 1 bit (XNOR-Net, arXiv 1603.05279, section 3.1; LLM-QAT's and FBI-LLM's 1 bit)."""

    name = "binary"
    source = "XNOR-Net, arXiv 1603.05279, section 3.1; FBI-LLM, arXiv 2407.07093"
    supported_bits = range(1, 2)
    promises = frozenset({"idempotent", "nearest", "scale-equivariant", "monotone"})

    def fit_groups(self, groups: Tensor) -> Scales:
        return (to_half(groups.abs().mean(-1, keepdim=True)),)

    def encode(self, groups: Tensor, scales: Scales) -> Tensor:
        return (groups >= 0).float()

    def decode(self, codes: Tensor, scales: Scales) -> Tensor:
        return codes.mul_(2).sub_(1).mul_(scales[0])


@dataclass(frozen=True)
class BinaryShifted(Format):
    """Mean plus or minus the mean deviation, 1 bit (FBI-LLM, arXiv 2407.07093)."""

    name = "binary-shifted"
    source = "FBI-LLM, arXiv 2407.07093"
    supported_bits = range(1, 2)
    stored = ("scale", "shift")
    promises = frozenset({"nearest", "scale-equivariant", "monotone"})

    def fit_groups(self, groups: Tensor) -> Scales:
        shift = to_half(groups.mean(-1, keepdim=True))
        return to_half((groups - shift).abs().mean(-1, keepdim=True)), shift

    def encode(self, groups: Tensor, scales: Scales) -> Tensor:
        return (groups >= scales[1]).float()

    def decode(self, codes: Tensor, scales: Scales) -> Tensor:
        return codes.mul_(2).sub_(1).mul_(scales[0]).add_(scales[1])
