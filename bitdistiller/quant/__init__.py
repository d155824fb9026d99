"""Weights -> low-bit weights: formats, fake quantization, clipping. Knows torch, no models, data or training."""

from bitdistiller.errors import UserError
from bitdistiller.quant.binary import Binary, BinaryShifted
from bitdistiller.quant.clip import clip_weights, search_clip
from bitdistiller.quant.format import Format, Quantized, RangeFormat
from bitdistiller.quant.int_asym import IntAsym
from bitdistiller.quant.int_sym import IntSym
from bitdistiller.quant.learned import LearnedScaleLinear, learn_scales
from bitdistiller.quant.model import bake, is_quantized, learned_tensors, load_learned, quantizable, quantize_model
from bitdistiller.quant.nf_asym import NfAsym
from bitdistiller.quant.pack import pack, unpack
from bitdistiller.quant.seq import Seq, SeqTernary
from bitdistiller.quant.ste import ESTIMATORS, fake_quantize
from bitdistiller.quant.ternary import Ternary, TernaryThreshold

FORMATS: dict[str, type[Format]] = {
    fmt.name: fmt
    for fmt in (IntAsym, IntSym, NfAsym, Ternary, TernaryThreshold, Binary, BinaryShifted, Seq, SeqTernary)
}


def make_format(name: str, bits: int, group_size: int) -> Format:
    """A format by its registered name.

    Raises:
        UserError: an unknown name, or bits or a group size that the format does not have.
    """
    if name not in FORMATS:
        raise UserError(f"unknown format {name!r}: choose one of {', '.join(FORMATS)}")
    return FORMATS[name](bits=bits, group_size=group_size)


__all__ = [
    "ESTIMATORS",
    "FORMATS",
    "Format",
    "LearnedScaleLinear",
    "Quantized",
    "RangeFormat",
    "bake",
    "clip_weights",
    "fake_quantize",
    "is_quantized",
    "learn_scales",
    "learned_tensors",
    "load_learned",
    "make_format",
    "pack",
    "quantizable",
    "quantize_model",
    "search_clip",
    "unpack",
]
