"""What a weight format must do, and what it may promise beyond that: one function each.

A check takes a format and a float32 weight matrix and raises ``AssertionError`` with a sentence; those on dtypes,
finite values and fake quantization cast the matrix to all others as well. ``CONTRACT`` holds for every format.
``PROMISES`` are kept by those that name them in ``promises``; that a format does *not* name one is tested as well, by
looking for weights that break it.

A format is any object with ``bits``, ``group_size``, ``promises``, ``quantize(w)`` and ``levels(q)``; ``quantize``
gives an object with ``codes`` and ``dequantize()``: a subclass of ``bitdistiller.quant.Format`` or your own.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from bitdistiller.quant.pack import pack, packed_columns, unpack
from bitdistiller.testing.strategies import DTYPES


@runtime_checkable
class WeightFormat(Protocol):
    """What the checks need of a format."""

    bits: int
    group_size: int
    promises: frozenset[str]

    def quantize(self, w: Tensor) -> Any:
        """An object with ``codes`` (O, I), of an integer dtype, and ``dequantize()``, the (O, I) values."""

    def levels(self, q: Any) -> Tensor:
        """(O, G, L): every value that a code of a group can stand for, ascending."""


Check = Callable[[WeightFormat, Tensor], None]


def values(fmt: WeightFormat, w: Tensor) -> Tensor:
    """The low-bit values of ``w``."""
    return fmt.quantize(w).dequantize()


def in_every_dtype(w: Tensor) -> list[Tensor]:
    """Float32 weights in all floating-point dtypes, as large as each allows."""
    limits = {dtype: torch.finfo(dtype).max for dtype in DTYPES}
    return [w.double().clamp(-limit, limit).to(dtype) for dtype, limit in limits.items()]


def group_slices(fmt: WeightFormat, w: Tensor) -> list[slice]:
    """Columns of each group, the ragged last one included."""
    return [slice(start, start + fmt.group_size) for start in range(0, w.shape[1], fmt.group_size)]


def codebook(fmt: WeightFormat, w: Tensor) -> Tensor:
    """(O, I, L): for each weight, the levels of its group."""
    return fmt.levels(fmt.quantize(w)).repeat_interleave(fmt.group_size, dim=1)[:, : w.shape[1]]


# The contract.


def codes_in_range(fmt: WeightFormat, w: Tensor) -> None:
    """Codes are whole numbers from 0 to the level count less one, one for each weight."""
    q = fmt.quantize(w)
    count = fmt.levels(q).shape[-1]
    assert not q.codes.is_floating_point(), f"codes have dtype {q.codes.dtype}, which is no integer type"
    assert q.codes.shape == w.shape, f"codes have shape {tuple(q.codes.shape)}, the weights {tuple(w.shape)}"
    low, high = q.codes.min().item(), q.codes.max().item()
    assert low >= 0 and high < count, f"codes from {low} to {high} with {count} levels"


def values_in_codebook(fmt: WeightFormat, w: Tensor) -> None:
    """Every low-bit value is the level of its group that its code names."""
    codes_in_range(fmt, w)
    q = fmt.quantize(w)
    named = codebook(fmt, w).gather(-1, q.codes.long().unsqueeze(-1)).squeeze(-1)
    wrong = named != q.dequantize().float()
    assert not wrong.any(), f"{int(wrong.sum())} values are not the level that their code names"


def level_count(fmt: WeightFormat, w: Tensor) -> None:
    """The codebook has at most 2^bits levels for each group, in ascending order."""
    book = fmt.levels(fmt.quantize(w))
    groups = len(group_slices(fmt, w))
    assert book.shape[:2] == (len(w), groups), f"levels for {tuple(book.shape[:2])} groups, not {(len(w), groups)}"
    assert book.shape[-1] <= 2**fmt.bits, f"{book.shape[-1]} levels at {fmt.bits} bits"
    assert (book.diff(dim=-1) >= 0).all(), "levels are not in ascending order"


def finite(fmt: WeightFormat, w: Tensor) -> None:
    """Finite weights give finite values, in every floating-point dtype."""
    for given in in_every_dtype(w):
        assert values(fmt, given).isfinite().all(), f"finite {given.dtype} weights became NaN or Inf"


def dtype_and_shape_kept(fmt: WeightFormat, w: Tensor) -> None:
    """Values have the dtype and shape of the weights, in every floating-point dtype."""
    for dtype in DTYPES:
        limit = torch.finfo(dtype).max
        given = w.double().clamp(-limit, limit).to(dtype)
        found = values(fmt, given)
        assert found.dtype == dtype and found.shape == w.shape, (
            f"{dtype} {tuple(w.shape)} became {found.dtype} {tuple(found.shape)}"
        )


def groups_do_not_leak(fmt: WeightFormat, w: Tensor) -> None:
    """Each group quantized alone gives what it gives in its matrix."""
    alone = torch.cat([torch.cat([values(fmt, row[None, part]) for part in group_slices(fmt, w)], 1) for row in w])
    assert torch.equal(alone, values(fmt, w)), "a group quantized alone differs from the same group in a matrix"


def rows_permute(fmt: WeightFormat, w: Tensor) -> None:
    """Rows in another order give the same values in that order."""
    order = torch.arange(len(w)).flip(0)
    assert torch.equal(values(fmt, w[order]), values(fmt, w)[order]), "the order of rows matters"


def groups_permute(fmt: WeightFormat, w: Tensor) -> None:
    """Full groups in another order give the same values in that order."""
    full = [torch.arange(s.start, s.stop) for s in group_slices(fmt, w) if s.stop <= w.shape[1]]
    if full:
        order = torch.cat(full[::-1])
        part = w[:, : len(order)]
        assert torch.equal(values(fmt, part[:, order]), values(fmt, part)[:, order]), "the order of groups matters"


def strides_do_not_matter(fmt: WeightFormat, w: Tensor) -> None:
    """The same weights in another order in memory give the same values."""
    columns_first = w.T.contiguous().T
    assert torch.equal(values(fmt, columns_first), values(fmt, w)), "weights stored by columns gave other values"


def deterministic(fmt: WeightFormat, w: Tensor) -> None:
    """The same weights give the same values, and are not changed."""
    before = w.clone()
    assert torch.equal(values(fmt, w), values(fmt, w)), "two calls gave different values"
    assert torch.equal(w, before), "quantize changed its argument"


def packing_is_lossless(fmt: WeightFormat, w: Tensor) -> None:
    """Codes survive packing into dense bytes of ``code_bits`` each."""
    codes = fmt.quantize(w).codes.to(torch.uint8)
    packed = pack(codes, fmt)
    assert packed.shape == (len(w), packed_columns(fmt, w.shape[1])), "packed codes have an unexpected size"
    assert torch.equal(unpack(packed, fmt, w.shape[1]), codes), "codes changed while they were packed"


CONTRACT: dict[str, Check] = {
    "codes-in-range": codes_in_range,
    "values-in-codebook": values_in_codebook,
    "level-count": level_count,
    "finite": finite,
    "dtype-and-shape-kept": dtype_and_shape_kept,
    "groups-do-not-leak": groups_do_not_leak,
    "rows-permute": rows_permute,
    "groups-permute": groups_permute,
    "strides-do-not-matter": strides_do_not_matter,
    "deterministic": deterministic,
}
# For formats that export uses: subclasses of ``bitdistiller.quant.Format``, and others with these attributes.
EXTRAS: dict[str, tuple[tuple[str, ...], Check]] = {
    "packing-is-lossless": (("code_bits", "level_count"), packing_is_lossless),
}


# Promises.


def idempotent(fmt: WeightFormat, w: Tensor) -> None:
    """Quantizing low-bit values changes nothing."""
    once = values(fmt, w)
    assert torch.equal(values(fmt, once), once), "quantizing twice differs from quantizing once"


def nearest(fmt: WeightFormat, w: Tensor) -> None:
    """No other level of the group is closer to the weight, up to rounding."""
    book, w = codebook(fmt, w).double(), w.double()
    slack = 1e-6 * book.abs().amax(-1)
    best = (book - w.unsqueeze(-1)).abs().amin(-1)
    error = (values(fmt, w.float()).double() - w).abs()
    assert (error <= best * (1 + 1e-6) + slack).all(), "a weight was not given its nearest level"


def half_step(fmt: WeightFormat, w: Tensor) -> None:
    """The error is at most half the widest step, plus what fp16 scales lose at the ends of the range.

    Groups whose range fp16 scales cannot express (below 0.01 or above 60,000) are not judged.
    """
    book = codebook(fmt, w).double()
    error = (values(fmt, w).double() - w.double()).abs()
    for part in group_slices(fmt, w):
        group = w[:, part].double()
        spread = group.amax(1).clamp_min(0) - group.amin(1).clamp_max(0)
        judged = (spread > 0.01) & (group.abs().amax(1) < 6e4)
        allowed = book[:, part.start].diff(dim=-1).amax(-1) / 2 + spread * 2**-10 * 1.01
        assert (error[:, part].amax(1) <= allowed)[judged].all(), "a weight is off by more than half a step"


def sign_equivariant(fmt: WeightFormat, w: Tensor) -> None:
    """Negated weights give negated values, ties included."""
    assert torch.equal(values(fmt, -w), -values(fmt, w)), "negated weights do not give negated values"


def scale_equivariant(fmt: WeightFormat, w: Tensor) -> None:
    """Weights times a power of two give values times that power, where fp16 scales are normal numbers."""
    for part in group_slices(fmt, w):
        group = w[:, part]
        exponent = group.abs().amax(1, keepdim=True).clamp_min(1e-30).log2().floor()
        group = (group * 2 ** (6 - exponent) * 256).round() / 256
        assert torch.equal(values(fmt, group * 8), values(fmt, group) * 8), (
            "eightfold weights do not give eightfold values"
        )


def monotone(fmt: WeightFormat, w: Tensor) -> None:
    """Within a group, a greater weight never gets a smaller value."""
    found = values(fmt, w)
    for part in group_slices(fmt, w):
        order = w[:, part].argsort(dim=1)
        assert (found[:, part].gather(1, order).diff(dim=1) >= 0).all(), "a greater weight got a smaller value"


def zero_is_level(fmt: WeightFormat, w: Tensor) -> None:
    """A weight of zero stays zero."""
    w = w.clone()
    w[:, ::3] = 0
    assert (values(fmt, w)[:, ::3] == 0).all(), "a weight of zero did not stay zero"


PROMISES: dict[str, Check] = {
    "idempotent": idempotent,
    "nearest": nearest,
    "half-step": half_step,
    "sign-equivariant": sign_equivariant,
    "scale-equivariant": scale_equivariant,
    "monotone": monotone,
    "zero-is-level": zero_is_level,
}


# Training.

FakeQuantize = Callable[[Tensor, WeightFormat], Tensor]


def fake_equals_real(reads: Sequence[FakeQuantize], fmt: WeightFormat, w: Tensor) -> None:
    """What training reads (``round``, ``fake_quantize``) is ``quantize(w).dequantize()``, bit for bit, in any dtype."""
    for given in in_every_dtype(w):
        for read in reads:
            assert torch.equal(read(given, fmt), values(fmt, given)), (
                f"the {given.dtype} values that training reads differ from quantize(w).dequantize()"
            )


def gradient_passes_through(fake_quantize: FakeQuantize, fmt: WeightFormat, w: Tensor) -> None:
    """A fake quantizer gives every latent weight its gradient unchanged, those at the outermost levels included."""
    w = w.clone().requires_grad_()
    upstream = torch.arange(1.0, w.numel() + 1).view_as(w)
    fake_quantize(w, fmt).backward(upstream)
    assert w.grad is not None and torch.equal(w.grad, upstream), (
        "fake quantization changed the gradient of some weights"
    )
