r"""What each format does to weights, before any training: error, bias, zeros, entropy of the codes, bits a weight.

Three sources: normal and Laplace weights, and some rows of every Linear layer of a real model. With clipping, each
group gets the shrunken range with the least squared weight error (``search_clip`` on white activations, whose Gram
matrix is the identity; training clips by real activations, and not queries and keys). Formats that have no range to
shrink have no such row. Entropy is that of the codes within a group (see ``bitdistiller.quant.measure``). Bias is the
mean error over the root mean square of the weights: levels that lie on one side of zero more than on the other move
all weights alike, and all outputs of a layer with them, where a squared error says little. These are facts about
rounding. Whether they are why a student fails is for the studies to say.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from bitdistiller.errors import UserError
from bitdistiller.models import load_model
from bitdistiller.quant import FORMATS, Format, RangeFormat, clip_weights, make_format, quantizable, search_clip
from bitdistiller.quant.measure import measure, total

SYNTHETIC_SHAPE = (256, 1536)
ROW_STRIDE = 64  # of a real layer, one row in so many is looked at


def compare(group_size: int, model: str | None, bits: list[int], seed: int = 0) -> Iterator[dict]:
    """One record for each source, format, bit width, with and without clipping.

    Args:
        group_size: weights a group.
        model: name of the model whose layers are a source; None for synthetic weights alone.
        bits: bit widths to look at.
        seed: of the synthetic weights.
    """
    formats = [make_format(name, bits=b, group_size=group_size) for name, b in _named_formats(bits)]
    for width in bits:
        if width not in {fmt.bits for fmt in formats}:
            raise UserError(f"no format has {width} bits; choose among 1 to 8")
    for source, matrices in sources(model, seed).items():
        for fmt in formats:
            yield {"weights": source, "clipped": False, **describe(matrices, fmt)}
            if isinstance(fmt, RangeFormat):
                yield {"weights": source, "clipped": True, **describe(matrices, fmt, clip=True)}


def _named_formats(bits: list[int]) -> list[tuple[str, int]]:
    return [(name, b) for name, fmt in FORMATS.items() for b in fmt.supported_bits if b in bits]


@torch.no_grad()
def sources(model: str | None, seed: int) -> dict[str, list[Float[Tensor, "O I"]]]:
    """Weight matrices by the name of where they come from."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(SYNTHETIC_SHAPE, generator=generator)
    uniform = torch.rand(SYNTHETIC_SHAPE, generator=generator) - 0.5
    laplace = -uniform.sign() * torch.log1p(-2 * uniform.abs())
    found = {"normal": [normal], "Laplace": [laplace]}
    if model is not None:
        layers = quantizable(load_model(model).model).values()
        found[f"{model}, 1 row in {ROW_STRIDE}"] = [layer.weight[::ROW_STRIDE].clone() for layer in layers]
    return found


@torch.no_grad()
def describe(matrices: list[Float[Tensor, "O I"]], fmt: Format, clip: bool = False) -> dict:
    """What ``fmt`` does to some matrices: squared error, bias, share of zeros, entropy of codes, bits a weight."""
    quantized = [fmt.quantize(_clipped(w, fmt) if clip else w) for w in matrices]
    found = total(measure(q, w) for q, w in zip(quantized, matrices, strict=True))
    moved = sum((q.dequantize() - w).double().sum().item() for q, w in zip(quantized, matrices, strict=True))
    stored = sum(fmt.bits_per_weight(w.shape[1]) * w.numel() for w in matrices)
    return {
        "format": fmt.name,
        "bits": fmt.bits,
        "relative_error": found.error,
        "bias": moved / math.sqrt(found.weights * found.square) if found.square else 0.0,
        "zeros": found.zeros,
        "entropy": found.entropy,
        "bits_per_weight": stored / found.weights,
    }


def _clipped(w: Float[Tensor, "O I"], fmt: Format) -> Float[Tensor, "O I"]:
    return clip_weights(w, *search_clip(w, torch.eye(w.shape[1]), fmt), fmt.group_size)
