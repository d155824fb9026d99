"""What all containers share: the tensors of a checkpoint, and a folder that is either whole or not there.

Linear layers that training quantizes are stored as their container wants them; everything else (embedding, norms,
biases, the head) is stored densely in one dtype, which is also the dtype that the model gets when it is loaded. The
choice matters: with ``float32`` a loaded model computes the student's own logits, since its embedding and norms were
trained in fp32 and nothing shorter holds them; with 16 bits the file is smaller and the logits are those of the
student after the same cast.

A file of our own, ``bitdistiller.json``, says what was exported. It is also what tells an earlier export, which may be
replaced, from any other folder, which may not: ``quantization_config`` is in every quantized model that is downloaded.
"""

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
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
MARKER = "bitdistiller.json"
Pack = Callable[[Quantized], dict[str, Tensor]]
Check = Callable[[Path], None]
_LIBRARIES = ("bitdistiller", "torch", "transformers")


def write_checkpoint(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fmt: Format,
    folder: Path,
    dtype: torch.dtype,
    container: str,
    quantization: dict,
    pack: Pack,
    check: Check | None = None,
) -> None:
    """Write a Hugging Face folder whose quantized layers hold what ``pack`` makes of them.

    Args:
        model: the student with its latent weights.
        tokenizer: goes into the folder as it is.
        fmt: the student's format.
        folder: replaced when it holds an earlier export, refused when it holds anything else.
        dtype: of all other weights, and of the loaded model.
        container: its name, for the marker.
        quantization: ``quantization_config`` of config.json.
        pack: a quantized layer -> tensors by the last part of their names.
        check: is given what was written before it takes its place; when it raises, ``folder`` stays as it was.

    Raises:
        UserError: the folder is taken or cannot be written, or the weights hold NaN or Inf.
    """
    folder = _replaceable(folder)
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
        (partial / MARKER).write_text(json.dumps(_marker(container, fmt), indent=2) + "\n")
        if check is not None:
            check(partial)


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
    """A sibling to write into, which becomes ``folder`` at the end; after an exception nothing of it is left.

    Raises:
        UserError: ``folder`` must not be replaced, or cannot be written.
    """
    folder = _replaceable(folder)
    partial, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{kind}") for kind in ("partial", "old"))
    try:
        partial.mkdir(parents=True)
        yield partial
        if _replaceable(folder).exists():  # asked again, since writing and checking take their time
            folder.rename(old)
        partial.rename(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be written: {error}") from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _replaceable(folder: Path) -> Path:
    """The absolute path of a folder that is absent, empty or an earlier export; all others are refused."""
    resolved = folder.resolve()
    if resolved in (Path.cwd(), *Path.cwd().parents):
        raise UserError(f"{folder} is the working directory or holds it and cannot be replaced; choose another --out")
    try:
        free = not resolved.exists() or (resolved.is_dir() and not any(resolved.iterdir())) or _is_ours(resolved)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error}") from error
    if not free:
        raise UserError(
            f"{folder} exists and holds no exported checkpoint ({MARKER} is missing); choose another folder with --out"
        )
    return resolved


def _is_ours(folder: Path) -> bool:
    if not (folder / MARKER).is_file():
        return False
    try:
        marker = json.loads((folder / MARKER).read_text())
    except ValueError:
        return False
    return isinstance(marker, dict) and {"container", "format", "bits", "group_size", "versions"} <= set(marker)


def _marker(container: str, fmt: Format) -> dict:
    versions = {name: metadata.version(name) for name in _LIBRARIES}
    what = {"format": fmt.name, "bits": fmt.bits, "group_size": fmt.group_size}
    return {"container": container, **what, "versions": versions}
