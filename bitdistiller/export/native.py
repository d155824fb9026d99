r"""The native container: codes as dense bytes, fp16 scales, every format at every width; and how transformers loads it.

A quantized Linear ``NAME`` is stored as ``NAME.codes`` (uint8, rows of ``bitdistiller.quant.pack``) and one tensor for
each name in the format's ``stored``: fp16 matrices with one number a group, except whole zero points, which are packed
as codes are, the whole matrix as one row. So with groups of g a weight takes its code, which is b bits or, in ternary
formats, 1.6, and :math:`16/g` bits for each stored fp16 number: one, but two in ``nf-asym`` and ``binary-shifted``.
Whole zero points add :math:`b/g`. ``Format.bits_per_weight`` says the same, but for the last byte of each row.

Loading gives an ordinary dense model: layers are placeholders while the file is read and become ``nn.Linear`` at its
end, by the very ``dequantize`` that fake quantization equals bit for bit. Nothing is decoded at inference, and saving
such a model writes an ordinary checkpoint. The price is memory: packed is only the file.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from bitdistiller.errors import UserError
from bitdistiller.export import METHOD
from bitdistiller.export.folder import Check, write_checkpoint
from bitdistiller.quant import FORMATS, Format, Quantized, make_format, pack, quantizable, unpack
from bitdistiller.quant.pack import packed_columns

WHOLE = "zero"  # the stored number that is a whole one below the level count


def export_native(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fmt: Format,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    check: Check | None = None,
) -> None:
    """Write a student with its latent weights as a packed folder that ``from_pretrained`` loads, if ``check`` passes.

    Raises:
        UserError: a format that is not in ``FORMATS``, weights with NaN or Inf, or a folder that is taken.
    """
    if type(fmt) is not FORMATS.get(fmt.name):
        raise UserError(f"format {fmt.name} is not registered in bitdistiller.quant.FORMATS, so nothing could load it")
    quantization = {"quant_method": METHOD, "format": fmt.name, "bits": fmt.bits, "group_size": fmt.group_size}
    write_checkpoint(model, tokenizer, fmt, folder, dtype, "native", quantization, pack_layer, check)


def pack_layer(q: Quantized) -> dict[str, Tensor]:
    """Tensors of one layer by the last part of their names."""
    tensors = {"codes": pack(q.codes, q.format)}
    for name, values in zip(q.format.stored, q.scales, strict=True):
        whole = name == WHOLE
        tensors[name] = pack(values.to(torch.uint8).reshape(1, -1), q.format) if whole else values.to(torch.float16)
    return tensors


def unpack_layer(tensors: dict[str, Tensor], fmt: Format, in_features: int) -> Quantized:
    """What ``pack_layer`` was given, as fp32 weights.

    Raises:
        UserError: tensors of other shapes than this format has for ``in_features``.
    """
    rows, groups = len(tensors["codes"]), -(-in_features // fmt.group_size)
    scales = []
    for name in fmt.stored:
        values = tensors[name]
        if name == WHOLE:
            values = unpack(values, fmt, rows * groups).reshape(rows, groups)
        scales.append(values.float().to(tensors["codes"].device))
    codes = unpack(tensors["codes"], fmt, in_features).to(tensors["codes"].device)
    return Quantized(fmt, codes, tuple(scales), torch.float32)


def packed_shapes(fmt: Format, rows: int, columns: int) -> dict[str, tuple[tuple[int, int], torch.dtype]]:
    """Shape and dtype of each stored tensor of a (rows, columns) layer."""
    groups = -(-columns // fmt.group_size)
    shapes = {"codes": ((rows, packed_columns(fmt, columns)), torch.uint8)}
    for name in fmt.stored:
        whole = name == WHOLE
        shapes[name] = ((1, packed_columns(fmt, rows * groups)), torch.uint8) if whole else ((rows, groups), torch.half)
    return shapes


class PackedLinear(nn.Module):
    """Stands for a Linear while its packed tensors are read."""

    def __init__(self, layer: nn.Linear, fmt: Format):
        super().__init__()
        self.format, self.in_features, self.dtype = fmt, layer.in_features, layer.weight.dtype
        self.bias = layer.bias
        for name, (shape, dtype) in packed_shapes(fmt, layer.out_features, layer.in_features).items():
            self.register_buffer(name, torch.empty(shape, dtype=dtype, device=layer.weight.device))

    def dense(self) -> nn.Linear:
        """The layer with its low-bit values as weights."""
        weight = unpack_layer(dict(self.named_buffers()), self.format, self.in_features).dequantize()
        layer = nn.Linear(self.in_features, len(weight), bias=self.bias is not None, device="meta")
        layer.weight = nn.Parameter(weight.to(self.dtype))
        if self.bias is not None:
            layer.bias = self.bias
        return layer


class PackedConfig(QuantizationConfigMixin):
    """``quantization_config`` of a packed folder.

    Raises:
        UserError: a key is missing, or one is there that this version does not know.
    """

    def __init__(self, quant_method=None, format=None, bits=None, group_size=None, **unknown):
        given = {"format": format, "bits": bits, "group_size": group_size}
        if unknown or None in given.values():
            keys = "quant_method, " + ", ".join(given)
            raise UserError(f"quantization_config in config.json must have {keys} and nothing else; export it anew")
        self.quant_method, self.dequantize = METHOD, True  # the loaded model is dense, which transformers has to know
        self.format, self.bits, self.group_size = format, bits, group_size


class PackedQuantizer(HfQuantizer):
    """What transformers calls before and after it reads the weights of a packed folder."""

    def __init__(self, quantization_config: PackedConfig, **kwargs):
        super().__init__(quantization_config, **kwargs)
        if not self.pre_quantized:
            raise UserError("from_pretrained does not quantize to this project's formats; use bitdistiller export")
        config = quantization_config
        self.format = make_format(config.format, bits=config.bits, group_size=config.group_size)

    def _process_model_before_weight_loading(self, model, checkpoint_files=None, **kwargs):
        layers = quantizable(model)
        _check_files(checkpoint_files or [], layers, self.format)
        for name, layer in layers.items():
            model.set_submodule(name, PackedLinear(layer, self.format))

    def _process_model_after_weight_loading(self, model, **kwargs):
        packed = {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}
        for name, module in packed.items():
            model.set_submodule(name, module.dense())

    def is_serializable(self) -> bool:
        """True: what is in memory is an ordinary dense model."""
        return True

    @property
    def is_trainable(self) -> bool:
        """True, for the same reason."""
        return True


def _check_files(files: list[str], layers: dict[str, nn.Linear], fmt: Format) -> None:
    """Refuse a checkpoint in which a packed tensor is missing or has another shape."""
    found = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                found |= {name: (tuple(file.get_slice(name).get_shape()), path) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged ({error}); export it anew") from error
    for name, layer in layers.items():
        for key, (shape, _) in packed_shapes(fmt, layer.out_features, layer.in_features).items():
            have = found.get(f"{name}.{key}", (None, None))[0]
            if found and have != shape:
                state = "is missing" if have is None else f"has shape {have}"
                raise UserError(
                    f"{name}.{key} {state} in {Path(files[0]).parent}; format {fmt.name} at {fmt.bits} bits with "
                    f"groups of {fmt.group_size} needs {shape}; export it anew"
                )
