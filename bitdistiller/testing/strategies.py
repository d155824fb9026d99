"""Hypothesis strategies: the weights that break quantizers.

A matrix is described by a few drawn numbers and a seed, so that an example is cheap and any size can be asked for;
small sizes come first, which is what a failing example shrinks to.
"""

import torch
from hypothesis import strategies as st
from torch import Tensor

KINDS = (
    "ordinary",  # normal
    "heavy-tailed",  # fifth powers of normals
    "positive",
    "negative",
    "constant",
    "zero",
    "outlier",  # one weight ten thousand times the others
    "denormal",  # too small for fp32's normal range
    "huge",  # beyond what fp16 holds
    "ties",  # on multiples of a half, midpoints of many grids
    "balanced",  # ties again, every weight with its negative: means are exactly zero
    "two-valued",
)
_TIED = ("ties", "balanced")
_EXTREMES = {"denormal": 1e-40, "huge": 1e25}
_SCALES = (1.0, 0.02, 1e-9, 1e6)
_POWERS = (1.0, 2.0**-6, 2.0**10)  # what keeps ties exact
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@st.composite
def weights(draw, max_rows: int = 4, max_columns: int = 40, kinds: tuple = KINDS, dtype=torch.float32) -> Tensor:
    """A (1 to ``max_rows``) x (1 to ``max_columns``) matrix of one of ``kinds``, finite in ``dtype``."""
    rows, columns = draw(st.integers(1, max_rows)), draw(st.integers(1, max_columns))
    kind = draw(st.sampled_from(kinds))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    w = _of_kind(kind, torch.randn(rows, columns, generator=generator, dtype=torch.float64))
    scale = _EXTREMES.get(kind) or draw(st.sampled_from(_POWERS if kind in _TIED else _SCALES))
    limit = torch.finfo(dtype).max
    return (w * scale).float().clamp(-limit, limit).to(dtype)


def _of_kind(kind: str, w: Tensor) -> Tensor:
    if kind == "heavy-tailed":
        return w**5
    if kind in ("positive", "negative"):
        return w.abs() * (1 if kind == "positive" else -1)
    if kind == "constant":
        return w[:1, :1].expand_as(w).clone()
    if kind == "zero":
        return torch.zeros_like(w)
    if kind == "outlier":
        w.view(-1)[0] *= 1e4
    elif kind in _TIED:
        w = (w * 3).round().clamp(-4, 4) / 2  # many groups end at 2, the midpoints of a few levels are on the grid
        if kind == "balanced":
            half = w.shape[1] // 2
            w[:, half:] = 0
            w[:, half : 2 * half] = -w[:, :half]
    elif kind == "two-valued":
        return torch.where(w > 0, w.max(), w.min())
    return w
