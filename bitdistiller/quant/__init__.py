"""Weights -> low-bit weights: formats, fake quantization, clipping. Knows torch, no models, data or training."""

from bitdistiller.errors import UserError
from bitdistiller.quant.clip import clip_weights, search_clip
from bitdistiller.quant.format import Format, Quantized
from bitdistiller.quant.int_asym import IntAsym
from bitdistiller.quant.model import bake, quantizable, quantize_model
from bitdistiller.quant.nf_asym import NfAsym
from bitdistiller.quant.ste import fake_quantize

FORMATS: dict[str, type[Format]] = {fmt.name: fmt for fmt in (IntAsym, NfAsym)}


def make_format(name: str, bits: int, group_size: int) -> Format:
    """A format by its registered name.

    Raises:
        UserError: an unknown name, or bits or a group size that the format does not have.
    """
    if name not in FORMATS:
        raise UserError(f"unknown format {name!r}: choose one of {', '.join(FORMATS)}")
    return FORMATS[name](bits=bits, group_size=group_size)


__all__ = [
    "FORMATS",
    "Format",
    "Quantized",
    "bake",
    "clip_weights",
    "fake_quantize",
    "make_format",
    "quantizable",
    "quantize_model",
    "search_clip",
]
