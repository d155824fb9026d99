"""A model's shape from its configuration alone: what its layers multiply, and how many weights that is.

The configuration comes from the micro models, from a folder, from the hub's cache or, for the models of the papers,
from ``architectures.yaml``, so that a plan needs neither weights nor a network. transformers builds the network on
the meta device, where tensors have shapes and no data; whatever it builds is counted as ``quant.quantizable`` would
quantize it, so any architecture with ``torch.nn.Linear`` layers has a plan.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import torch
import yaml
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from bitdistiller.distill.clipping import UNCLIPPED
from bitdistiller.errors import UserError
from bitdistiller.models.gguf import SMOLLM2
from bitdistiller.models.micro import MICRO_MODELS
from bitdistiller.quant import quantizable

Matrix = tuple[int, int]  # in, out


@dataclass(frozen=True)
class Architecture:
    """The shape of a causal language model.

    Attributes:
        matrices: how many Linear layers of each (in, out) lie below the output head: what is quantized.
        unclipped: weights among those that the clipping search leaves alone (``distill.clipping``).
        parameters: all weights, a tied head counted once.
        inner: width of the MLP's hidden layer; ``gated`` if two layers produce it.
        layer_norm: norms are ``torch.nn.LayerNorm``, which keeps less for its backward pass than an RMS norm in Python.
    """

    name: str
    kind: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    inner: int
    gated: bool
    layer_norm: bool
    vocabulary: int
    context: int
    tied: bool
    matrices: tuple[tuple[Matrix, int], ...]
    unclipped: int
    parameters: int

    @property
    def quantizable(self) -> int:
        """Weights that a student quantizes."""
        return sum(rows * columns * count for (rows, columns), count in self.matrices)

    @property
    def head(self) -> int:
        """Weights of the output head."""
        return self.hidden * self.vocabulary

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer, on average: what full sharding gathers at a time."""
        return (self.parameters - self.head * (1 if self.tied else 2)) // self.layers


@cache
def architecture(name: str) -> Architecture:
    """The shape of the model called ``name``, as in params.yaml; ``@revision`` at its end is allowed.

    Raises:
        UserError: nothing at hand says what its shape is, or it has no layers to quantize.
    """
    return shape_of(find_config(name), name)


def shape_of(config: PreTrainedConfig, name: str) -> Architecture:
    """The shape that ``config`` describes."""
    text = config.get_text_config()
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (ValueError, ImportError, KeyError) as error:
        raise UserError(f"{name} is not a causal language model that transformers knows ({_line(error)})") from None
    layers = quantizable(model)
    matrices = Counter((layer.in_features, layer.out_features) for layer in layers.values())
    heads = text.num_attention_heads
    inner, gated = _mlp(model, text)
    return Architecture(
        name=name,
        kind=text.model_type,
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        heads=heads,
        kv_heads=_kv_heads(text),
        head_size=getattr(text, "head_dim", None) or text.hidden_size // heads,
        inner=inner,
        gated=gated,
        layer_norm=any(isinstance(module, nn.LayerNorm) for module in model.modules()),
        vocabulary=model.get_output_embeddings().weight.shape[0],
        context=getattr(text, "max_position_embeddings", None) or 0,
        tied=model.get_output_embeddings().weight is model.get_input_embeddings().weight,
        matrices=tuple(sorted(matrices.items())),
        unclipped=sum(layer.weight.numel() for name, layer in layers.items() if name.endswith(UNCLIPPED)),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def _kv_heads(text: PreTrainedConfig) -> int:
    if getattr(text, "multi_query", False):  # StarCoder's way of saying one
        return 1
    return getattr(text, "num_key_value_heads", None) or text.num_attention_heads


def _mlp(model: nn.Module, text: PreTrainedConfig) -> tuple[int, bool]:
    """Width of the MLP's hidden layer, and whether it is gated (two Linear layers of one MLP lead there)."""
    widening: Counter[tuple[str, int]] = Counter()
    for name, layer in quantizable(model).items():
        if layer.in_features == text.hidden_size and layer.out_features > text.hidden_size and "attn" not in name:
            widening[name.rpartition(".")[0], layer.out_features] += 1
    if not widening:
        return getattr(text, "intermediate_size", None) or 4 * text.hidden_size, False
    inner = getattr(text, "intermediate_size", None) or max(width for _, width in widening)
    return inner, any(count > 1 and width == inner for (_, width), count in widening.items())


def find_config(name: str) -> PreTrainedConfig:
    """Configuration of a model by its name; the nearest source wins, the network comes last."""
    if name in MICRO_MODELS:
        return MICRO_MODELS[name].config()
    if name == SMOLLM2:
        return _shipped()[name]
    if name and Path(name).expanduser().is_dir():
        return _read(str(Path(name).expanduser()), name, None, local=True)
    identity, _, revision = name.partition("@")
    try:
        return _read(identity, name, revision or None, local=True)
    except UserError:
        shipped = _shipped()
        if identity in shipped:
            return shipped[identity]
    return _read(identity, name, revision or None, local=False)


def _read(location: str, name: str, revision: str | None, local: bool) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(location, revision=revision, local_files_only=local, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"the shape of {name} is not known here ({_line(error)}): give the path of a folder with its config.json, "
            "let it be fetched (HF_HUB_OFFLINE=0), or use a model of bitdistiller/plan/architectures.yaml"
        ) from None


@cache
def _shipped() -> dict[str, PreTrainedConfig]:
    table = yaml.safe_load(resources.files("bitdistiller.plan").joinpath("architectures.yaml").read_text())
    found = {}
    for entry in table:
        config = AutoConfig.for_model(bos_token_id=0, eos_token_id=0, **entry["config"])  # defaults may lie beyond
        found |= dict.fromkeys(entry["names"], config)
    return found


def _line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
