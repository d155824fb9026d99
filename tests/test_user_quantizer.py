"""How a project tests a quantizer of its own; the README points here."""

import torch

from bitdistiller.testing import PROMISES, FormatInvariants


class PowersOfTwo:
    """Five levels, -s to s in steps of s / 2, with s the least power of two not below the group's magnitudes."""

    bits, promises = 3, frozenset(PROMISES)

    def __init__(self, group_size, codes=None, scale=None, dtype=None):
        self.group_size, self.codes, self.scale, self.dtype = group_size, codes, scale, dtype

    def quantize(self, w):
        groups = torch.nn.functional.pad(w.float(), (0, -w.shape[1] % self.group_size))
        groups = groups.view(len(w), -1, self.group_size)
        scale = groups.abs().amax(-1).clamp_min(1e-30).log2().ceil().exp2()
        codes = (groups / scale.unsqueeze(-1) * 2).round().clamp(-2, 2).long() + 2
        return PowersOfTwo(self.group_size, codes.flatten(1)[:, : w.shape[1]], scale, w.dtype)

    def dequantize(self):
        values = self.levels(self).repeat_interleave(self.group_size, 1)[:, : self.codes.shape[1]]
        largest = torch.finfo(self.dtype).max  # the next power of two may lie beyond fp16
        values = values.double().gather(-1, self.codes.unsqueeze(-1)).squeeze(-1)
        return values.clamp(-largest, largest).to(self.dtype)

    def levels(self, q):
        return torch.tensor([-1, -0.5, 0, 0.5, 1]) * q.scale.unsqueeze(-1)


def straight_through(w, fmt):
    return fmt.quantize(w.detach()).dequantize() + (w - w.detach())


class TestPowersOfTwo(FormatInvariants):
    formats = (PowersOfTwo(group_size=8), PowersOfTwo(group_size=5))
    fake_quantize = staticmethod(straight_through)
