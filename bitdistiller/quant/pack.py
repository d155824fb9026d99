r"""Codes as dense bytes, losslessly: what a packed checkpoint stores.

Each row of codes becomes a row of bytes. Formats of b bits write b bits a code, least significant first, one code after
the other without gaps; ternary formats put five codes in a byte as digits of a number to base 3 (:math:`3^5 = 243`).
"""

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from bitdistiller.errors import UserError
from bitdistiller.quant.format import Format

_TRITS = 3 ** np.arange(5, dtype=np.uint8)


def pack(codes: UInt8[Tensor, "O I"], fmt: Format) -> UInt8[Tensor, "O P"]:
    """Codes of ``fmt`` as dense bytes, a row each.

    Raises:
        UserError: a code that the format does not have.
    """
    if codes.ndim != 2 or codes.dtype != torch.uint8:
        raise UserError(f"pack takes a uint8 matrix of codes, not {codes.dtype} of shape {tuple(codes.shape)}")
    if codes.numel() and codes.max().item() >= fmt.level_count:
        raise UserError(f"format {fmt.name} has codes below {fmt.level_count}, not {codes.max().item()}")
    array = codes.cpu().numpy()
    if _base_three(fmt):
        padded = np.pad(array, ((0, 0), (0, -array.shape[1] % 5)))
        fives = padded.reshape(len(array), padded.shape[1] // 5, 5)
        return torch.from_numpy((fives * _TRITS).sum(-1, dtype=np.uint8))
    bits = np.unpackbits(array[..., None], axis=-1, bitorder="little", count=fmt.bits)
    return torch.from_numpy(
        np.packbits(bits.reshape(len(array), codes.shape[1] * fmt.bits), axis=-1, bitorder="little")
    )


def unpack(packed: UInt8[Tensor, "O P"], fmt: Format, columns: int) -> UInt8[Tensor, "O I"]:
    """The codes that ``pack`` was given; ``columns`` of them a row.

    Raises:
        UserError: rows of another length than ``columns`` codes take.
    """
    wanted = packed_columns(fmt, columns)
    if packed.shape[1] != wanted:
        raise UserError(f"{columns} codes of format {fmt.name} take {wanted} bytes a row, not {packed.shape[1]}")
    array = packed.cpu().numpy()
    if _base_three(fmt):
        digits = array[..., None] // _TRITS % 3
        return torch.from_numpy(digits.reshape(len(array), 5 * wanted)[:, :columns].copy())
    bits = np.unpackbits(array, axis=-1, bitorder="little", count=columns * fmt.bits)
    codes = np.packbits(bits.reshape(len(array), columns, fmt.bits), axis=-1, bitorder="little")
    return torch.from_numpy(codes[..., 0].copy())


def packed_columns(fmt: Format, columns: int) -> int:
    """Bytes that a row of ``columns`` codes takes."""
    return -(-columns // 5) if _base_three(fmt) else -(-columns * fmt.bits // 8)


def _base_three(fmt: Format) -> bool:
    return fmt.code_bits == 8 / 5
