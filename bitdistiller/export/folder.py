"""What all containers share: the tensors of a checkpoint, and a folder that is either whole or not there.

Linear layers that training quantizes are stored as their container wants them; everything else (embedding, norms,
biases, the head) is stored densely in one dtype, which is also the dtype that the model gets when it is loaded. The
choice matters: with ``float32`` a loaded model computes the student's own logits, since its embedding and norms were
trained in fp32 and nothing shorter holds them; with 16 bits the file is smaller and the logits are those of the
student after the same cast.
"""

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitdistiller.errors import UserError
from bitdistiller.quant import Format, LearnedScaleLinear, Quantized, quantizable

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WEIGHTS = "model.safetensors"
Pack = Callable[[Quantized], dict[str, Tensor]]


def write_checkpoint(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fmt: Format,
    folder: Path,
    dtype: torch.dtype,
    quantization: dict,
    pack: Pack,
) -> None:
    """Write a Hugging Face folder whose quantized layers hold what ``pack`` makes of them.

    Args:
        model: the student with its latent weights.
        tokenizer: goes into the folder as it is.
        fmt: the student's format.
        folder: replaced when it holds an earlier export, refused when it holds anything else.
        dtype: of all other weights, and of the loaded model.
        quantization: ``quantization_config`` of config.json.
        pack: a quantized layer -> tensors by the last part of their names.

    Raises:
        UserError: the folder is taken or cannot be written, or the weights hold NaN or Inf.
    """
    _refuse_taken(folder)
    tensors = {}
    layers = quantizable(model)
    for name, layer in layers.items():
        tensors |= {f"{name}.{key}": value.contiguous() for key, value in pack(quantize_layer(layer, fmt)).items()}
    tensors |= dense_weights(model, set(layers), dtype)
    config = copy.deepcopy(model.config)
    config.dtype, config.quantization_config = dtype, quantization
    with whole_folder(folder) as partial:
        save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(partial)
        if model.can_generate() and model.generation_config is not None:
            model.generation_config.save_pretrained(partial)
        tokenizer.save_pretrained(partial)


def quantize_layer(layer: nn.Linear, fmt: Format) -> Quantized:
    """Codes and scales that the layer's forward pass uses; learned scales are its own."""
    return layer.quantized() if isinstance(layer, LearnedScaleLinear) else fmt.quantize(layer.weight.detach().float())


def dense_weights(model: PreTrainedModel, quantized: set[str], dtype: torch.dtype) -> dict[str, Tensor]:
    """Every parameter and buffer outside the quantized weights, tied ones once."""
    kept, seen = {}, set()
    for name, tensor in model.state_dict().items():
        layer, _, last = name.rpartition(".")
        if (layer in quantized and last != "bias") or tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        kept[name] = (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()
    return kept


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A sibling to write into, which becomes ``folder`` at the end; after an exception nothing of it is left."""
    partial, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{kind}") for kind in ("partial", "old"))
    try:
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be written: {error}") from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _refuse_taken(folder: Path) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        earlier = "quantization_config" in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        earlier = False
    if not earlier:
        raise UserError(f"{folder} exists and holds no exported checkpoint; choose another folder with --out")
