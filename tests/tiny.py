"""A tiny world for end-to-end tests: a model of 60,000 weights, its tokenizer, text, and parameters that name them."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bitdistiller.config import Params
from bitdistiller.models.micro import train_tokenizer

TEXT = "the a small old red river house king tree runs sees finds under over near quickly slowly and then but"
WORDS = TEXT.split()


def sentences(count: int, seed: int = 0) -> list[str]:
    """Distinct pseudo-sentences of 30 to 60 words."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(30, 60, (count,), generator=generator).tolist()
    return [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=generator).tolist()) for n in lengths]


def make_model(folder: Path, seed: int = 0, kind: str = "bpe", vocabulary: int | None = None, inner: int = 72) -> Path:
    """A random Llama of 2 layers and width 32 with a byte-level tokenizer, saved to ``folder``."""
    tokenizer = train_tokenizer(kind, sentences(50))
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary or len(tokenizer), hidden_size=32, num_hidden_layers=2, intermediate_size=inner,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True,
        initializer_range=0.2, bos_token_id=0, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_text(path: Path, count: int = 400) -> Path:
    """A text file with one document a line."""
    path.write_text("\n".join(sentences(count, seed=1)) + "\n")
    return path


def make_params(model: Path, text: Path, **run) -> dict:
    """``params.yaml`` of the tiny world: one 2-bit run and one baseline; keyword arguments change the run."""
    texts = [str(text)]
    return {
        "root": ".", "weights": ".", "scale": "tiny", "threads": 1,
        "training_text": {"own": {
            "generator": str(model), "sequences": 12, "corpus_sequences": 12, "text": texts,
            "length": 32, "prompt_length": 8, "temperature": 0.7, "top_p": 1.0, "batch_size": 8, "seed": 0}},
        "student_text": {},
        "instruction_text": {},
        "reasoning": {},
        "data": {"self": {"teacher": str(model), "training_text": "own"}},
        "quantizers": {"int2": {
            "model": str(model), "format": "int-asym", "bits": 2, "group_size": 20, "clip": "asymmetric",
            "scales": "fitted", "estimator": "pass-through", "text": texts,
            "calibration_tokens": 64, "calibration_length": 32}},
        "runs": {"student": {
            "quantizer": "int2", "data": "self", "loss": "cakld", "gamma": "label", "temperature": 1.0,
            "ce_weight": 0.0, "allow_vocabulary_mismatch": False, "steps": 6, "batch_tokens": 128, "micro_batches": 2,
            "learning_rate": 1e-3, "warmup_steps": 1, "weight_decay": 0.0, "checkpoint_every": 2, "validate_every": 3,
            "validation_text": texts, "validation_sequences": 4, "seed": 0, **run}},
        "baselines": {"full": {"model": str(model), "weights": "pretrained", "seed": 0}},
        "ptq": {},
        "peers": {},
        "evaluation": {
            "perplexity": {"heldout": {"text": texts, "window": 32, "max_tokens": 500}}, "tasks": {},
            "batch_tokens": 256, "seed": 0},
        "studies": {},
    }  # fmt: skip


def make_teacher(params: Params, artifacts: Path) -> None:
    """Training text and teacher cache of the data set ``self``."""
    from bitdistiller.data.generate import make_text
    from bitdistiller.distill.teacher import cache_teacher
    from bitdistiller.models import load_model

    text, data = params.training_text["own"], params.data["self"]
    path = artifacts / "text" / "own.jsonl"
    make_text(text, load_model(text.generator), path)
    cache_teacher(data.teacher, text.length, path, artifacts / "teacher" / "self")


def params(model: Path, text: Path, **run) -> Params:
    """``make_params``, validated."""
    return Params.model_validate(make_params(model, text, **run))
