r"""Asymmetric clipping: how far to shrink each group's range before quantizing it.

A narrower range gives finer steps to the many weights in the middle and saturates the few at the ends. For each
group of each row the search tries every pair of shrinks of the greatest and the least weight and keeps the pair with
the least output error on calibration activations (BitDistiller, arXiv 2402.10631, section 3.2),

.. math:: \lVert X_g (w_g - \hat w_g) \rVert^2 = d^\top (X_g^\top X_g)\, d, \qquad d = w_g - \hat w_g .

The right-hand side is what makes it fast: activations enter only through one Gram matrix a group, shared by all rows
and all hundred candidates, and a candidate costs one batched matrix product. Rows are taken in chunks that fit the
cache. The unshrunk range is a candidate, so the result is never worse than no clipping on this objective.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from bitdistiller.errors import UserError
from bitdistiller.quant.format import (
    LARGEST,
    Format,
    RangeFormat,
    check_group_size,
    check_matrix,
    check_weights,
    group_range,
    split_groups,
    to_dtype,
)

SHRINKS = tuple(1 - 0.05 * step for step in range(10))  # 1.00, 0.95 ... 0.55
_LARGEST_ACTIVATION = 1e15  # the Gram matrix holds squares
_CHUNK_ELEMENTS = 2**18  # floats a temporary: 1 MiB, so that the passes of one candidate stay in cache


def require_range(fmt: Format) -> None:
    """Refuse a format that clipping cannot change.

    Raises:
        UserError: its levels do not depend on the range of a group.
    """
    if not isinstance(fmt, RangeFormat):
        raise UserError(f"format {fmt.name} has no range to clip; set `clip: none`, or choose another format")


@torch.no_grad()
def search_clip(
    w: Float[Tensor, "O I"], x: Float[Tensor, "T I"], fmt: Format, symmetric: bool = False
) -> tuple[Float[Tensor, "O G"], Float[Tensor, "O G"]]:
    """Bounds ``low, high`` of each group that minimise the output error of quantizing ``w`` on inputs ``x``.

    Args:
        w: weights of a Linear.
        x: calibration activations, about 512 tokens; of any floating-point dtype.
        fmt: the format to be used.
        symmetric: shrink both ends of a range alike, as AWQ's search does: ten candidates instead of a hundred.

    Returns:
        Two (O, G) matrices, in fp32; ``clip_weights`` applies them.

    Raises:
        UserError: matrices with NaN or Inf, of integers, empty or on two devices, shapes that do not fit, or a format
            without a range.
    """
    require_range(fmt)
    check_weights(w)
    check_matrix(x, "the activation matrix", _LARGEST_ACTIVATION)
    if x.shape[1] != w.shape[1]:
        raise UserError(f"search_clip takes w (out, in) and x (tokens, in), not {tuple(w.shape)} and {tuple(x.shape)}")
    if x.device != w.device:
        raise UserError(f"search_clip takes w and x on one device, not on {w.device} and {x.device}; move one of them")
    with torch.autocast(w.device.type, enabled=False):  # which would multiply in 16 bits
        return _search(w, x, fmt, symmetric)


def _search(
    w: Float[Tensor, "O I"], x: Float[Tensor, "T I"], fmt: RangeFormat, symmetric: bool
) -> tuple[Tensor, Tensor]:
    bounds = []
    for groups, inputs in zip(*(split_groups(t.float(), fmt.group_size) for t in (w, x)), strict=True):
        inputs = inputs.transpose(0, 1)  # (G, T, n)
        gram = inputs.transpose(1, 2) @ inputs
        rows = max(1, _CHUNK_ELEMENTS // groups[0].numel())
        chunks = [chunk.transpose(0, 1).contiguous() for chunk in groups.split(rows)]
        parts = [_search_groups(chunk, gram, fmt, w.dtype, symmetric) for chunk in chunks]
        bounds.append(tuple(torch.cat(side, dim=1).T for side in zip(*parts, strict=True)))
    low, high = (torch.cat(side, dim=1) for side in zip(*bounds, strict=True))
    return low, high


def _search_groups(
    groups: Float[Tensor, "G O n"], gram: Float[Tensor, "G n n"], fmt: RangeFormat, dtype: torch.dtype, symmetric: bool
) -> tuple[Tensor, Tensor]:
    least, greatest = group_range(groups)
    best = torch.full_like(least, torch.inf)
    best_low, best_high = least.clone(), greatest.clone()
    for high_shrink in SHRINKS:
        for low_shrink in (high_shrink,) if symmetric else SHRINKS:
            # in the dtype of the weights, which will have to hold them
            low, high = to_dtype(least * low_shrink, dtype).float(), to_dtype(greatest * high_shrink, dtype).float()
            scales = fmt.fit(low, high)
            values = fmt.decode(fmt.encode(groups.clamp(low, high), scales), scales)
            difference = to_dtype(values, dtype).float().sub_(groups)
            error = (difference @ gram).mul_(difference).sum(dim=-1, keepdim=True)
            better = error < best
            best = torch.where(better, error, best)
            best_low, best_high = torch.where(better, low, best_low), torch.where(better, high, best_high)
    return best_low.squeeze(-1), best_high.squeeze(-1)


@torch.no_grad()
def clip_weights(
    w: Float[Tensor, "O I"], low: Float[Tensor, "O G"], high: Float[Tensor, "O G"], group_size: int
) -> Tensor:
    """``w`` with every group clamped to its bounds.

    Raises:
        UserError: weights that no format can quantize, or bounds that are not one pair for each group, in order.
    """
    check_weights(w)
    check_group_size(group_size)
    wanted = (len(w), -(-w.shape[1] // group_size))
    for bound in (low, high):
        check_matrix(bound, "a matrix of bounds", LARGEST)
        if bound.shape != wanted:
            raise UserError(f"a matrix of bounds has shape {tuple(bound.shape)}; the groups of w need {wanted}")
    low, high = low.to(w), high.to(w)
    if (low > high).any():
        raise UserError("clip_weights takes lower bounds first, and those of some groups are above the upper ones")
    return torch.clamp(w, *(bound.repeat_interleave(group_size, dim=1)[:, : w.shape[1]] for bound in (low, high)))
