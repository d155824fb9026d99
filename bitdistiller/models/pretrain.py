"""Pretraining of the micro models on real text, until held-out loss stops falling.

With about a million and a half training tokens every model overfits within a few epochs, so the schedule is
driven by the validation loss itself: the learning rate falls when it stalls, training ends when it stalls at the
lowest rate, and the best checkpoint is kept. Weights are stored in fp16, which these models do not notice.
"""

import json
import math
import shutil
from pathlib import Path

import torch
import yaml
from pydantic import ValidationError
from transformers import EarlyStoppingCallback, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from bitdistiller.config import Section
from bitdistiller.data.blocks import BlockDataset, packed_blocks
from bitdistiller.data.text import load_text, text_provenance
from bitdistiller.errors import UserError
from bitdistiller.models.micro import MICRO_MODELS, VOCABULARY, train_tokenizer
from bitdistiller.training.trainer import SafeTrainer, fingerprint, training_arguments


class PretrainParams(Section):
    """How every micro model is pretrained."""

    block_length: int
    batch_blocks: int
    learning_rate: float
    learning_rate_factor: float
    weight_decay: float
    evaluations_per_epoch: int
    max_epochs: int
    seed: int
    threads: int


class ModelParams(Section):
    """Where one micro model departs from the others.

    ``plateau``: the learning rate falls when an evaluation lowers the held-out loss by less than this share.
    Training ends after ``patience`` evaluations that did not lower it by ``least_gain`` nats.
    """

    tokenizer: str
    plateau: float
    patience: int
    least_gain: float


class PretrainFile(Section):
    """``pretrain/params.yaml``."""

    text: list[str]
    training: PretrainParams
    tokenizers: dict[str, dict]
    models: dict[str, ModelParams]


def load_pretrain_params(path: Path) -> PretrainFile:
    """Read and check ``pretrain/params.yaml``."""
    try:
        return PretrainFile.model_validate(yaml.safe_load(path.read_text()))
    except FileNotFoundError:
        raise UserError(f"{path.absolute()} does not exist; run from the folder pretrain/") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}, key {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def pretrain_tokenizer(kind: str, text: list[str], folder: Path) -> None:
    """Train a tokenizer on the train split and write it to ``folder``."""
    documents = load_text(text, "train")
    train_tokenizer(kind, [document.text for document in documents]).save_pretrained(folder)


def pretrain(name: str, file: PretrainFile, artifacts: Path) -> dict:
    """Train one micro model from scratch and write weights, tokenizer, metrics and card.

    The tokenizer is read from ``artifacts/tokenizers``; the model goes to ``artifacts/models/NAME``.

    Returns:
        The metrics that the model card states.

    Raises:
        UserError: a name that is not a micro model.
    """
    if name not in MICRO_MODELS or name not in file.models:
        raise UserError(f"unknown micro model {name!r}: choose one of {', '.join(file.models)}")
    params, own, work_dir = file.training, file.models[name], artifacts / "checkpoints" / name
    identity = fingerprint(
        {"text": file.text, "training": params.model_dump(), name: own.model_dump()},
        Path(__file__),
        Path(__file__).with_name("micro.py"),
        artifacts / "tokenizers" / own.tokenizer / "tokenizer.json",
    )
    out_dir = artifacts / "models" / name
    torch.set_num_threads(params.threads)
    set_seed(params.seed)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(artifacts / "tokenizers" / own.tokenizer)
    documents = {split: load_text(file.text, split) for split in ("train", "validation", "test")}
    blocks = {split: packed_blocks(tokenizer, docs, params.block_length) for split, docs in documents.items()}
    model = LlamaForCausalLM(MICRO_MODELS[name].config())
    trainer = _trainer(name, params, own, model, blocks, work_dir / identity)
    trainer.train()

    model.to(torch.float16).save_pretrained(out_dir)
    tokenizer.save_pretrained(out_dir)
    stored = LlamaForCausalLM.from_pretrained(out_dir, dtype=torch.float32)
    trainer.model = trainer.model_wrapped = stored
    metrics = {
        "parameters": sum(p.numel() for p in stored.parameters()),
        "train_tokens": blocks["train"].numel(),
        "tokens_seen": trainer.state.global_step * params.batch_blocks * params.block_length,
        "epochs": round(trainer.state.epoch, 2),
        "best_step": trainer.state.best_global_step,
        "validation_perplexity": math.exp(trainer.evaluate(BlockDataset(blocks["validation"]))["eval_loss"]),
        "test_perplexity": math.exp(trainer.evaluate(BlockDataset(blocks["test"]))["eval_loss"]),
        "text": text_provenance(file.text, documents["train"]),
    }
    (out_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    (out_dir / "README.md").write_text(model_card(name, params, own, metrics))
    shutil.rmtree(work_dir, ignore_errors=True)
    return metrics


def _trainer(name: str, params: PretrainParams, own: ModelParams, model, blocks, work_dir: Path) -> SafeTrainer:
    steps_per_epoch = len(blocks["train"]) // params.batch_blocks
    interval = max(1, steps_per_epoch // params.evaluations_per_epoch)
    arguments = training_arguments(
        work_dir,
        per_device_train_batch_size=params.batch_blocks,
        per_device_eval_batch_size=params.batch_blocks,
        num_train_epochs=params.max_epochs,
        learning_rate=params.learning_rate,
        lr_scheduler_type="reduce_lr_on_plateau",
        lr_scheduler_kwargs={"factor": params.learning_rate_factor, "patience": 0, "threshold": own.plateau},
        weight_decay=params.weight_decay,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        dataloader_drop_last=True,
        eval_strategy="steps",
        eval_steps=interval,
        save_strategy="steps",
        save_steps=interval,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=False,
        logging_steps=interval,
        seed=params.seed,
    )
    return SafeTrainer(
        model=model,
        args=arguments,
        train_dataset=BlockDataset(blocks["train"]),
        eval_dataset=BlockDataset(blocks["validation"]),
        callbacks=[EarlyStoppingCallback(own.patience, own.least_gain)],
    )


def model_card(name: str, params: PretrainParams, own: ModelParams, metrics: dict) -> str:
    """The README that lies beside a micro model's weights; every number in it comes from ``metrics``."""
    shape = MICRO_MODELS[name]
    return f"""---
license: apache-2.0
library_name: transformers
tags: [bitdistiller, research]
---
# {name}

A Llama-architecture language model of {metrics["parameters"]:,} parameters ({shape.layers} layers, width {shape.hidden},
vocabulary {VOCABULARY:,}, {shape.tokenizer} tokenizer over bytes), pretrained by bitdistiller so that claims about low-bit
training can be exercised on two CPU cores. It is a research instrument and writes no useful text.

| | |
|---|---|
| data | {", ".join(metrics["text"]["origins"])}; train split, {metrics["text"]["documents"]:,} documents, SHA-256 of ids `{metrics["text"]["sha256"][:16]}` |
| training tokens | {metrics["train_tokens"]:,} distinct, {metrics["tokens_seen"]:,} seen ({metrics["epochs"]} epochs; best at step {metrics["best_step"]}) |
| stopped when | {own.patience} evaluations in a row ({params.evaluations_per_epoch} an epoch), at a falling learning rate, had not lowered the validation loss by {own.least_gain} nats |
| perplexity, validation | {metrics["validation_perplexity"]:.2f} (per token, windows of {params.block_length}) |
| perplexity, test | {metrics["test_perplexity"]:.2f} |
| weights | fp16 safetensors |
| command | `make pretrain` (`dvc repro pretrain/dvc.yaml`) |
"""
