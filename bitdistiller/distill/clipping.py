"""Clipping bounds for a whole model: calibration activations from real text, one search a layer.

The projections to queries and keys are left alone, as in BitDistiller's released code and AWQ before it: clipping them
hurts, because errors there are amplified by the softmax over positions. A layer that makes values along with them (as
in GPT-NeoX, GPT-BigCode or Phi-3) is left alone too.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from bitdistiller.config import QuantizerParams
from bitdistiller.data.blocks import packed_blocks
from bitdistiller.data.text import load_text
from bitdistiller.device import device
from bitdistiller.errors import UserError
from bitdistiller.models import load_model, require_context
from bitdistiller.quant import clip_weights, make_format, quantizable, search_clip

UNCLIPPED = ("q_proj", "k_proj", "query_key_value", "c_attn", "qkv_proj")


def search_model(params: QuantizerParams, path: Path) -> dict:
    """Search clipping bounds for every Linear of a model but q and k, and write them as safetensors.

    Returns:
        How many layers and groups were searched, and the mean shrink of both ends.
    """
    fmt = make_format(params.format, bits=params.bits, group_size=params.group_size)
    loaded = load_model(params.model)
    require_context(loaded, params.calibration_length)
    loaded.model.to(device())
    bounds: dict[str, Tensor] = {}
    if params.clip != "none":
        layers = {n: layer for n, layer in quantizable(loaded.model).items() if not n.endswith(UNCLIPPED)}
        inputs = calibration_inputs(loaded.model, loaded.tokenizer, layers, params)
        for name, layer in tqdm(layers.items(), desc="clipping search", unit="layer"):
            low, high = search_clip(layer.weight, inputs[name], fmt, symmetric=params.clip == "symmetric")
            bounds |= {f"{name}.low": low.cpu().contiguous(), f"{name}.high": high.cpu().contiguous()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(bounds, path, metadata={"quantizer": params.model_dump_json()})
    return {"layers": len(bounds) // 2, "groups": sum(b.numel() for b in bounds.values()) // 2}


@torch.no_grad()
def calibration_inputs(model, tokenizer, layers: dict[str, nn.Linear], params: QuantizerParams) -> dict[str, Tensor]:
    """Inputs of each layer over ``calibration_tokens`` tokens of train text, (T, I) each; layers may share one."""
    count = -(-params.calibration_tokens // params.calibration_length)
    documents = load_text(params.text, "train")
    blocks = packed_blocks(tokenizer, documents, params.calibration_length)
    if len(blocks) < count:
        raise UserError(
            f"the text gives {blocks.numel()} tokens, fewer than calibration_tokens = {params.calibration_tokens}"
        )
    picked = torch.linspace(0, len(blocks) - 1, count).long()  # spread over all documents
    inputs: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(_layer, arguments):
            inputs[name] = arguments[0].detach().flatten(0, -2)[: params.calibration_tokens]

        return hook

    handles = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
    try:
        model.base_model(input_ids=blocks[picked].to(device()), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return inputs


@torch.no_grad()
def apply_clipping(model: nn.Module, path: Path, params: QuantizerParams) -> None:
    """Clamp the weights of ``model`` to the bounds in ``path``: where the student starts.

    Raises:
        UserError: the file cannot be read, or was made for another quantizer or another model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            made_for = QuantizerParams.model_validate_json(file.metadata()["quantizer"])
            names = file.keys()
            bounds = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: clipping bounds cannot be read ({error}); search them with `bitdistiller clip`"
        ) from None
    if made_for != params:
        raise UserError(f"{path} holds bounds for another quantizer ({made_for}); search them with `bitdistiller clip`")
    layers = quantizable(model)
    for name in {key.rsplit(".", 1)[0] for key in bounds}:
        if name not in layers:
            raise UserError(f"{path} has bounds for {name}, a layer that the model does not have; search them anew")
        weight = layers[name].weight
        weight.copy_(clip_weights(weight, bounds[f"{name}.low"], bounds[f"{name}.high"], params.group_size))
