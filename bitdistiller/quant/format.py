r"""The contract of a weight format, and what all group-wise formats share.

A format turns groups of consecutive weights of a row (along the input dimension) into codes and a few numbers a group.
Groups have ``group_size`` weights; when that does not divide the row, the last group is shorter, which real hidden
sizes such as 576 with groups of 128 need. Here lies the mechanics: cutting a matrix into groups, holding codes, and
the guarantee on which training, evaluation and export rest:

    fake quantization is ``dequantize(quantize(w))``, bit for bit,

because both run the same ``encode`` and ``decode``; ``quantize`` merely stores the codes as bytes in between.

Scales are snapped to fp16 when they are made, before any code is computed, since fp16 is what packed checkpoints
store: rounding them later would make an exported student another model than the one that was trained.

A format is a class of a dozen lines: how a group becomes scales (``fit_groups``), weights become codes (``encode``) and
codes become values (``decode``), and which ``promises`` it keeps beyond the contract. ``RangeFormat`` is for those that
are fitted to a range ``[low, high]`` of the group, which is what a clipping search varies.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from bitdistiller.errors import UserError

Scales = tuple[Tensor, ...]
FP16_MAX = 65504.0
LARGEST = 1e30  # weights above it would overflow fp32 in sums over a group
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Quantized:
    """A quantized matrix: one code a weight and, for each group, the numbers that give the codes their values.

    Attributes:
        format: the format that made it.
        codes: (O, I) uint8.
        scales: (O, G) each, fp32, in the order of ``format.stored``, whose names are attributes too: ``q.scale``,
            ``q.zero``.
        dtype: dtype of the matrix it was made from, which ``dequantize`` returns.
    """

    format: "Format"
    codes: UInt8[Tensor, "O I"]
    scales: tuple[Float[Tensor, "O G"], ...]
    dtype: torch.dtype

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("__") or name not in self.format.stored:
            raise AttributeError(f"a matrix in format {self.format.name} has no {name!r}")
        return self.scales[self.format.stored.index(name)]

    def dequantize(self) -> Float[Tensor, "O I"]:
        """The low-bit values as a dense matrix of the original dtype."""
        return self.format.dequantize(self)


@dataclass(frozen=True)
class Format(ABC):
    """A weight format with its bits and group size; a frozen value without state.

    Raises:
        UserError: bits that the format does not have, or a group size below 1.
    """

    bits: int
    group_size: int

    name: ClassVar[str]
    source: ClassVar[str]
    supported_bits: ClassVar[range]
    stored: ClassVar[tuple[str, ...]] = ("scale",)
    promises: ClassVar[frozenset[str]]  # names in ``bitdistiller.testing.PROMISES``

    def __post_init__(self):
        if type(self.bits) is not int or self.bits not in self.supported_bits:
            low, high = self.supported_bits[0], self.supported_bits[-1]
            has = f"{low} to {high} bits" if low < high else f"{low} bit{'s' if low > 1 else ''}"
            raise UserError(f"format {self.name} has {has}, not {self.bits!r}; change bits or the format")
        check_group_size(self.group_size)

    # What a format defines; all work on the last dimension, which is one group.

    @abstractmethod
    def fit_groups(self, groups: Float[Tensor, "*g n"]) -> Scales:
        """Numbers a group, (*g, 1) each, exact in fp16 where they are scales."""

    @abstractmethod
    def encode(self, groups: Float[Tensor, "*g n"], scales: Scales) -> Float[Tensor, "*g n"]:
        """Codes, as whole floats; weights beyond the outermost levels get the nearest outermost code."""

    @abstractmethod
    def decode(self, codes: Float[Tensor, "*g n"], scales: Scales) -> Float[Tensor, "*g n"]:
        """Values of codes, ascending with them. May overwrite ``codes``."""

    @property
    def level_count(self) -> int:
        """Codes that a weight can have."""
        return 2**self.bits

    @property
    def code_bits(self) -> float:
        """Bits that a packed code takes."""
        return self.bits

    def scale_bits(self) -> int:
        """Bits stored for each group beside the codes."""
        return 16 * len(self.stored)

    # What every format gets.

    def quantize(self, w: Float[Tensor, "O I"]) -> Quantized:
        """Quantize a weight matrix.

        Raises:
            UserError: what ``check_weights`` refuses.
        """
        check_weights(w)
        fitted = [(groups, self.fit_groups(groups)) for groups in split_groups(w.detach().float(), self.group_size)]
        codes = [self.encode(groups, scales).flatten(1) for groups, scales in fitted]
        joined = tuple(torch.cat(parts, dim=1).squeeze(-1) for parts in zip(*(s for _, s in fitted), strict=True))
        return Quantized(self, torch.cat(codes, dim=1).to(torch.uint8), joined, w.dtype)

    def dequantize(self, q: Quantized) -> Float[Tensor, "O I"]:
        """Values of a quantized matrix, (O, I), in the dtype it was made from."""
        parts, start = [], 0
        for codes in split_groups(q.codes.float(), self.group_size):
            count = codes.shape[1]
            part = tuple(s[:, start : start + count].unsqueeze(-1) for s in q.scales)
            parts.append(self.decode(codes, part).flatten(1))
            start += count
        return to_dtype(torch.cat(parts, dim=1), q.dtype)

    def round(self, w: Float[Tensor, "O I"]) -> Float[Tensor, "O I"]:
        """``quantize(w).dequantize()`` without storing codes; no gradient (see ``fake_quantize``).

        Raises:
            UserError: what ``check_weights`` refuses.
        """
        check_weights(w)
        return to_dtype(map_groups(self.round_groups, w.detach().float(), self.group_size), w.dtype)

    def round_groups(self, groups: Float[Tensor, "O G n"]) -> Float[Tensor, "O G n"]:
        """Low-bit values of whole groups."""
        scales = self.fit_groups(groups)
        return self.decode(self.encode(groups, scales), scales)

    def levels(self, q: Quantized) -> Float[Tensor, "O G L"]:
        """The codebook of each group: every value that a code can stand for, ascending."""
        codes = torch.arange(self.level_count, dtype=torch.float32, device=q.codes.device)
        scales = tuple(s.unsqueeze(-1) for s in q.scales)
        return self.decode(codes.expand(*q.scale.shape, -1).clone(), scales)

    def outermost(self, scales: Scales) -> tuple[Float[Tensor, "*g 1"], Float[Tensor, "*g 1"]]:
        """Least and greatest level of each group."""
        return tuple(self.decode(torch.full_like(scales[0], code), scales) for code in (0, self.level_count - 1))

    def unsaturated(self, scales: Scales) -> tuple[Float[Tensor, "*g 1"], Float[Tensor, "*g 1"]]:
        """Ends of the range in which a weight is rounded and not cut off: the outermost levels, in most formats."""
        return self.outermost(scales)

    def bits_per_weight(self, in_features: int | None = None) -> float:
        """Stored bits a weight, scales and zero points included; ``in_features`` accounts for a ragged last group."""
        row = in_features or self.group_size
        return self.code_bits + self.scale_bits() * math.ceil(row / self.group_size) / row


class RangeFormat(Format):
    """A format that is fitted to the range of a group; clipping narrows that range."""

    @abstractmethod
    def fit(self, low: Float[Tensor, "*g 1"], high: Float[Tensor, "*g 1"]) -> Scales:
        """Numbers a group, from its range ``low <= 0 <= high``."""

    def fit_groups(self, groups: Float[Tensor, "*g n"]) -> Scales:
        return self.fit(*group_range(groups))


def split_groups(w: Tensor, group_size: int) -> Iterator[Float[Tensor, "O G n"]]:
    """The full groups of every row, and after them the shorter last group where there is one."""
    rows, columns = w.shape
    full = columns - columns % group_size
    if full:
        yield w[:, :full].reshape(rows, full // group_size, group_size)
    if full < columns:
        yield w[:, full:].reshape(rows, 1, columns - full)


def map_groups(function: Callable[[Tensor], Tensor], w: Tensor, group_size: int) -> Tensor:
    """A matrix with ``function`` applied to its groups."""
    parts = [function(groups).flatten(1) for groups in split_groups(w, group_size)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def group_range(groups: Float[Tensor, "*g n"]) -> tuple[Float[Tensor, "*g 1"], Float[Tensor, "*g 1"]]:
    """Least and greatest weight of each group, widened to include zero."""
    low, high = groups.aminmax(dim=-1, keepdim=True)
    return low.clamp_max(0), high.clamp_min(0)


def snap_down(scale: Tensor) -> Tensor:
    """The greatest fp16 number not above each (non-negative) scale, as fp32.

    Rounding down, not to nearest, keeps the outermost codes in use: with a scale that is too large by half a unit in
    the last place the greatest weight may fall short of the last code, and quantizing twice would differ from once.
    """
    half = scale.clamp_max(FP16_MAX).to(torch.float16)
    too_large = (half.float() > scale).to(torch.int16)
    return (half.view(torch.int16) - too_large).view(torch.float16).float()


def nonzero(scale: Tensor) -> Tensor:
    """1 where the scale is 0 (all weights are, or vanish in fp16): codes and values are then 0 or equal."""
    return scale.where(scale > 0, 1.0)


def to_half(scale: Tensor) -> Tensor:
    """The fp16 number nearest to each scale, as fp32; none becomes infinite."""
    return scale.clamp(-FP16_MAX, FP16_MAX).to(torch.float16).float()


def to_dtype(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values in the dtype of the weights; a level beyond its range (fp16's ends at 65,504) becomes its last number."""
    limit = torch.finfo(dtype).max
    return (values.clamp(-limit, limit) if limit < torch.finfo(values.dtype).max else values).to(dtype)


def check_weights(w: object) -> None:
    """Refuse what no format can quantize.

    Raises:
        UserError: not a dense floating-point matrix, an empty one, or NaN, Inf or numbers near the end of fp32.
    """
    check_matrix(w, "the weight matrix", LARGEST)


def check_matrix(matrix: object, what: str, largest: float) -> None:
    """Refuse what is no dense floating-point matrix, is empty, or holds NaN, Inf or magnitudes above ``largest``.

    Raises:
        UserError: a sentence that begins with ``what``.
    """
    dense = isinstance(matrix, Tensor) and matrix.layout == torch.strided and not matrix.is_meta
    if not dense or matrix.ndim != 2 or matrix.dtype not in DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise UserError(f"{what} has to be a dense floating-point matrix ({names}), not {_described(matrix)}")
    if matrix.numel() == 0:
        raise UserError(f"{what} has to hold numbers, and one of shape {tuple(matrix.shape)} has none")
    low, high = matrix.detach().aminmax()
    largest = min(largest, torch.finfo(matrix.dtype).max)  # a greater number would become Inf in the comparison
    if not (low >= -largest and high <= largest):  # one pass, since training asks at every step; NaN compares as False
        raise UserError(
            f"{what} of shape {tuple(matrix.shape)} holds NaN or Inf, or numbers above {largest:g}; "
            "nothing was computed"
        )


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    layout = "" if value.layout == torch.strided else f" and layout {value.layout}"
    return f"{value.dtype} of shape {tuple(value.shape)}{layout}{' without data' if value.is_meta else ''}"


def check_group_size(group_size: object) -> None:
    """Refuse a group size that is no whole number of at least 1.

    Raises:
        UserError: the number is below 1, or no number.
    """
    if type(group_size) is not int or group_size < 1:
        raise UserError(f"group size must be a whole number of at least 1, not {group_size!r}")
