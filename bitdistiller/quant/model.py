"""From a matrix to a network: every Linear except the output head reads low-bit weights."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitdistiller.errors import UserError
from bitdistiller.quant.format import Format
from bitdistiller.quant.learned import LearnedScaleLinear, learn_scales
from bitdistiller.quant.ste import PASS_THROUGH, fake_quantize


class FakeQuantLinear(nn.Linear):
    """A Linear whose latent weight is fake-quantized at every forward pass.

    It keeps the names of ``nn.Linear``'s parameters, so that a student's checkpoint is an ordinary one.
    """

    format: Format
    estimator: str

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, fake_quantize(self.weight, self.format, self.estimator), self.bias)


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


def quantize_model(model: nn.Module, fmt: Format, estimator: str = PASS_THROUGH, learned_scales: bool = False) -> int:
    """Fake-quantize every Linear of ``model`` except its head, in place; returns how many weights that are.

    Args:
        estimator: straight-through estimator of the backward pass.
        learned_scales: give every group a scale that is trained (``learn_scales``) instead of fitted at every step.

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
        if learned_scales:
            learn_scales(layer, fmt)
        else:
            layer.__class__ = FakeQuantLinear
            layer.format, layer.estimator = fmt, estimator
    return sum(layer.weight.numel() for layer in layers.values())


def is_quantized(model: nn.Module) -> bool:
    """Whether layers of the model are fake-quantized, with fitted or learned scales."""
    return any(isinstance(layer, FakeQuantLinear | LearnedScaleLinear) for layer in model.modules())


@torch.no_grad()
def bake(model: nn.Module) -> None:
    """Replace latent weights by their low-bit values for good, so that inference quantizes nothing any more."""
    for layer in model.modules():
        if isinstance(layer, FakeQuantLinear):
            layer.weight.copy_(layer.format.round(layer.weight))
            del layer.estimator
        elif isinstance(layer, LearnedScaleLinear):
            layer.weight.copy_(layer.quantized().dequantize())
            for name in layer.format.stored:
                delattr(layer, name)
        else:
            continue
        layer.__class__ = nn.Linear
        del layer.format


def learned_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What ``LearnedScaleLinear`` layers hold beside their weights, by its name in the model's state."""
    return {
        f"{name}.{part}": getattr(layer, part).detach()
        for name, layer in model.named_modules()
        if isinstance(layer, LearnedScaleLinear)
        for part in layer.format.stored
    }


@torch.no_grad()
def load_learned(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put ``learned_tensors`` of a trained model into one that was quantized with learned scales.

    Raises:
        UserError: the tensors belong to another model or format.
    """
    own = learned_tensors(model)
    if {name: t.shape for name, t in own.items()} != {name: t.shape for name, t in tensors.items()}:
        raise UserError("the learned scales belong to another model or format than this one; train the student again")
    for name, tensor in tensors.items():
        own[name].copy_(tensor)
