r"""Containers of other software, for formats whose values are :math:`s\,(c - z)`: compressed-tensors and GPTQ.

Both store codes c and whole zero points z at b bits and one scale s a group. ``int-asym`` has exactly these; for
``int-sym`` z is the middle code, which compressed-tensors need not store. What the other software computes is what
training computed, because s is a number of fp16 and c - z a whole one: their product fits fp32, in whatever order.

It does not fit fp16, and both decode in the dtype of the scales. In a compressed-tensors file they are fp16 only where
the whole model is; where that is fp32 or bf16 they are the same numbers in fp32 (rounded to fp16 on the way, weights
would change in bf16 too). gptqmodel casts scales to the model's dtype, fp16 or bf16, of which only fp16 keeps them: so
a GPTQ checkpoint is fp16.

GPTQ has two layouts of zero points. The first one stores z - 1 and so cannot say z = 0 (at 2 bits it wraps around and
corrupts the weights); only the second, ``gptq_v2``, is written here.
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitdistiller.errors import UserError
from bitdistiller.export.folder import Check, write_checkpoint
from bitdistiller.quant import Format, IntAsym, IntSym, Quantized, pack, quantizable

BITS = (2, 3, 4, 8)
GPTQ_GROUP_SIZES = (16, 32, 64, 128, 256, 512, 1024)  # gptqmodel 7.6, nn_modules/qlinear/torch.py
GPTQ_MULTIPLE = 32  # codes that fill whole 32-bit words at every width


def export_compressed_tensors(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fmt: Format,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    check: Check | None = None,
) -> None:
    """Write a student as a compressed-tensors folder (``pack-quantized``), if ``check`` passes.

    Raises:
        UserError: something that the container does not hold, compressed-tensors is not installed, or a taken folder.
    """
    _refuse(model, fmt, "compressed-tensors")
    pack_to_int32 = _library("compressors.pack_quantized.helpers").pack_to_int32
    offset, symmetric = 2 ** (fmt.bits - 1), isinstance(fmt, IntSym)
    scale_dtype = torch.float16 if dtype == torch.float16 else torch.float32

    def packed(codes: Tensor, dim: int) -> Tensor:
        return pack_to_int32((codes.to(torch.int16) - offset).to(torch.int8), fmt.bits, packed_dim=dim)

    def pack_layer(q: Quantized) -> dict[str, Tensor]:
        codes = q.codes + 1 if symmetric else q.codes  # the code of the lowest level is -2^(b-1) + 1 there
        tensors = {
            "weight_packed": packed(codes, 1),
            "weight_scale": q.scale.to(scale_dtype),
            "weight_shape": torch.tensor(q.codes.shape),
        }
        return tensors if symmetric else {**tensors, "weight_zero_point": packed(q.zero, 0)}

    config = _compressed_tensors_config(model, fmt)
    write_checkpoint(model, tokenizer, fmt, folder, dtype, "compressed-tensors", config, pack_layer, check)


def _compressed_tensors_config(model: PreTrainedModel, fmt: Format) -> dict:
    library = _library("quantization")
    weights = library.QuantizationArgs(
        num_bits=fmt.bits, type="int", strategy="group", group_size=fmt.group_size, symmetric=isinstance(fmt, IntSym)
    )
    linear = {name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    config = library.QuantizationConfig(
        config_groups={
            "group_0": library.QuantizationScheme(targets=["Linear"], weights=weights, format="pack-quantized")
        },
        format="pack-quantized",
        quantization_status="compressed",
        ignore=sorted(linear - set(quantizable(model))),
    )
    # Without `dequantize` transformers 5.23 decodes again at every forward pass.
    return {**config.model_dump(mode="json"), "dequantize": True}


def _library(module: str) -> ModuleType:
    try:
        return import_module(f"compressed_tensors.{module}")
    except ImportError as error:
        raise UserError(
            f"--to compressed-tensors needs that package ({error}); install it with pip install 'bitdistiller[export]'"
        ) from error


def export_gptq(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fmt: Format,
    folder: Path,
    dtype: torch.dtype = torch.float16,
    check: Check | None = None,
) -> None:
    """Write a student as a GPTQ folder of the second layout (``gptq_v2``), in fp16, if ``check`` passes.

    Raises:
        UserError: something that the container does not hold, another dtype, or a taken folder.
    """
    _refuse(model, fmt, "GPTQ")
    if dtype != torch.float16:
        raise UserError("GPTQ checkpoints are written in float16: gptqmodel has no float32 and rounds scales to bf16")
    if fmt.group_size not in GPTQ_GROUP_SIZES:
        raise UserError(
            f"GPTQ checkpoints have groups of {', '.join(map(str, GPTQ_GROUP_SIZES))}, not {fmt.group_size}; "
            "use --to native"
        )
    for name, layer in quantizable(model).items():
        if layer.in_features % GPTQ_MULTIPLE or layer.out_features % GPTQ_MULTIPLE:
            raise UserError(
                f"{name} is {layer.out_features} x {layer.in_features} and GPTQ needs multiples of {GPTQ_MULTIPLE}; "
                "use --to native"
            )

    def pack_layer(q: Quantized) -> dict[str, Tensor]:
        zero = q.zero if isinstance(fmt, IntAsym) else torch.full_like(q.scale, fmt.level_count // 2)
        return {
            "qweight": _words(q.codes, fmt).T,
            "qzeros": _words(zero.T.to(torch.uint8), fmt),
            "scales": q.scale.T.to(torch.float16),
            "g_idx": torch.arange(q.codes.shape[1], dtype=torch.int32) // fmt.group_size,
        }

    config = {
        "quant_method": "gptq",
        "checkpoint_format": "gptq_v2",
        "bits": fmt.bits,
        "group_size": fmt.group_size,
        "sym": False,
        "desc_act": False,
        "lm_head": False,
        "pack_dtype": "int32",
    }
    write_checkpoint(model, tokenizer, fmt, folder, dtype, "gptq", config, pack_layer, check)


def _words(codes: Tensor, fmt: Format) -> Tensor:
    """Rows of codes as rows of little-endian 32-bit words."""
    return torch.from_numpy(pack(codes.contiguous(), fmt).numpy().view("<i4").astype("int32"))


def _refuse(model: PreTrainedModel, fmt: Format, container: str) -> None:
    if not isinstance(fmt, IntAsym | IntSym):
        raise UserError(
            f"{container} checkpoints hold formats whose values are scale x (code - zero point), int-asym and int-sym, "
            f"not {fmt.name}; use --to native"
        )
    if fmt.bits not in BITS:
        raise UserError(
            f"{container} checkpoints are written at {', '.join(map(str, BITS))} bits, not {fmt.bits}; use --to native"
        )
    for name, layer in quantizable(model).items():
        if layer.in_features % fmt.group_size:
            raise UserError(
                f"{name} has {layer.in_features} inputs, and {container} checkpoints have no shorter last group: "
                f"{fmt.group_size} must divide them; use --to native or another group_size"
            )
