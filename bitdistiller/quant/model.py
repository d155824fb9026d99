"""From a matrix to a network: every Linear except the output head reads low-bit weights."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitdistiller.errors import UserError
from bitdistiller.quant.format import Format
from bitdistiller.quant.learned import LearnedScaleLinear
from bitdistiller.quant.ste import fake_quantize


class FakeQuantLinear(nn.Linear):
    """A Linear whose latent weight is fake-quantized at every forward pass.

    It keeps the names of ``nn.Linear``'s parameters, so that a student's checkpoint is an ordinary one.
    """

    format: Format

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, fake_quantize(self.weight, self.format), self.bias)


def quantizable(model: nn.Module) -> dict[str, nn.Linear]:
    """Every ``nn.Linear`` of a model by its name, without the output head.

    Raises:
        UserError: the model has no such layer (GPT-2's Conv1D is not one).
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer is not head}
    if not found:
        raise UserError(
            f"{type(model).__name__} has no torch.nn.Linear beside its head, so there is nothing to quantize"
        )
    return found


def quantize_model(model: nn.Module, fmt: Format) -> int:
    """Fake-quantize every Linear of ``model`` except its head, in place; returns how many weights that are.

    Raises:
        UserError: nothing to quantize, rows shorter than a group, or layers with learned scales.
    """
    layers = quantizable(model)
    for name, layer in layers.items():
        if isinstance(layer, LearnedScaleLinear):
            raise UserError(f"{name} has learned scales already, so there is nothing left to quantize")
        if layer.in_features < fmt.group_size:
            raise UserError(
                f"{name} has rows of {layer.in_features} weights, fewer than group_size = {fmt.group_size}; "
                f"choose a group size of at most {layer.in_features}"
            )
    for layer in layers.values():
        layer.__class__ = FakeQuantLinear
        layer.format = fmt
    return sum(layer.weight.numel() for layer in layers.values())


@torch.no_grad()
def bake(model: nn.Module) -> None:
    """Replace latent weights by their low-bit values for good, so that inference quantizes nothing any more."""
    for layer in model.modules():
        if isinstance(layer, FakeQuantLinear):
            layer.weight.copy_(layer.format.round(layer.weight))
        elif isinstance(layer, LearnedScaleLinear):
            layer.weight.copy_(layer.quantized().dequantize())
            for name in layer.format.stored:
                delattr(layer, name)
        else:
            continue
        layer.__class__ = nn.Linear
        del layer.format
