"""A name of ``params.yaml`` -> its scores, with everything that a reader needs to trust them.

Four kinds of models have scores: trained students (``runs``), models that were clipped and rounded but not trained
(``ptq``), those of other people's quantizers (``peers``), and untrained references (``baselines``). All but the
pretrained model itself are compared with it.
"""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch

from bitdistiller.config import EvaluationParams, Params, QuantizerParams, entry
from bitdistiller.data.text import text_provenance
from bitdistiller.distill.student import load_student, prepare_student
from bitdistiller.evaluate import evaluate_model
from bitdistiller.evaluate.local import held_out_text
from bitdistiller.evaluate.weights import summarize_weights
from bitdistiller.models import LoadedModel, load_model, random_model
from bitdistiller.provenance import Stopwatch, environment, weights_sha256
from bitdistiller.quant import bake, is_quantized, quantizable
from bitdistiller.results import RunScores

FULL_PRECISION = {"bits": 16, "bits_per_weight": 16, "quantized_parameters": 0}


@dataclass(frozen=True)
class Candidate:
    """A model to score.

    Attributes:
        loaded: it; fake-quantized if it is a student or a rounded model.
        origin: in a sentence, what its weights are.
        original: the pretrained model that it is compared with; None for that model itself.
        used: the parameters that made it.
        sizes: nominal bits, stored bits a quantized weight with scales and zero points, and how many weights that are.
    """

    loaded: LoadedModel
    origin: str
    original: LoadedModel | None
    used: dict
    sizes: dict[str, float] = field(default_factory=lambda: dict(FULL_PRECISION))

    def settle(self, evaluation: EvaluationParams) -> None:
        """Replace latent weights by low-bit values for good, and hold them as ``evaluation`` says."""
        bake(self.loaded.model)
        if evaluation.weights == "bf16":
            for model in filter(None, (self.loaded.model, self.original and self.original.model)):
                model.to(torch.bfloat16)

    def described(self) -> dict:
        """The fields of ``RunScores`` that say what was scored. The model must be settled."""
        return {
            "model": self.used["model"],
            "origin": self.origin,
            "parameters": sum(p.numel() for p in self.loaded.model.parameters()),
            "model_sha256": weights_sha256(self.loaded.model),
            "original_sha256": None if self.original is None else weights_sha256(self.original.model),
            **self.sizes,
        }


def evaluate_run(name: str, params: Params, artifacts: Path) -> tuple[RunScores, pd.DataFrame]:
    """Scores and per-item results of a trained student, a rounded model, a peer or a baseline.

    Raises:
        UserError: no such name, its artifacts are missing, or it cannot be scored.
    """
    watch = Stopwatch()
    torch.set_num_threads(params.threads)
    candidate = load_candidate(name, params, artifacts)
    model, original = candidate.loaded.model, candidate.original and candidate.original.model
    weights = summarize_weights(model, original) if is_quantized(model) else None
    candidate.settle(params.evaluation)
    scores, items = evaluate_model(model, candidate.loaded.tokenizer, params.evaluation, original)
    record = RunScores(
        run=name,
        **candidate.described(),
        scores=scores,
        weights=weights,
        parameters_used={**candidate.used, "evaluation": params.evaluation.model_dump()},
        data={key: _scored_text(key, section.text, items) for key, section in params.evaluation.perplexity.items()},
        environment=environment(),
        cost=watch.cost(),
    )
    return record, items


def load_candidate(name: str, params: Params, artifacts: Path) -> Candidate:
    """A run, a rounded model, a peer or a baseline, by its name.

    Raises:
        UserError: no such name, or its artifacts are missing.
    """
    if name in params.runs:
        run = params.runs[name]
        loaded = load_student(name, params, artifacts)
        return _quantized(loaded, params.quantizers[run.quantizer], "trained from", {"run": run.model_dump()})
    if name in params.ptq:
        rounded = params.ptq[name]
        quantizer = params.quantizers[rounded.quantizer]
        loaded = prepare_student(quantizer, artifacts / "clip" / f"{rounded.quantizer}.safetensors")
        return _quantized(loaded, quantizer, "rounded from", {"ptq": rounded.model_dump()})
    if name in params.peers:
        return _peer(name, params, artifacts)
    return _baseline(name, params)


def _quantized(loaded: LoadedModel, quantizer: QuantizerParams, how: str, used: dict) -> Candidate:
    layers = quantizable(loaded.model).values()
    quantized = sum(layer.weight.numel() for layer in layers)
    stored = sum(layer.weight.numel() * layer.format.bits_per_weight(layer.in_features) for layer in layers)
    return _from_original(loaded, quantizer, how, used, stored / quantized, quantized)


def _peer(name: str, params: Params, artifacts: Path) -> Candidate:
    from bitdistiller.peers import load_peer, read_record  # no other stage depends on these

    loaded, record = load_peer(name, params, artifacts), read_record(name, params, artifacts)
    how, used = f"{loaded.origin}, from", {"peer": record.peer.model_dump()}
    return _from_original(loaded, record.quantizer, how, used, record.bits_per_weight, record.quantized_parameters)


def _from_original(
    loaded: LoadedModel, quantizer: QuantizerParams, how: str, used: dict, bits_per_weight: float, quantized: int
) -> Candidate:
    original = load_model(quantizer.model)
    used = {"model": quantizer.model, **used, "quantizer": quantizer.model_dump()}
    sizes = {"bits": quantizer.bits, "bits_per_weight": bits_per_weight, "quantized_parameters": quantized}
    return Candidate(loaded, f"{how} {quantizer.model}: {original.origin}", original, used, sizes)


def _baseline(name: str, params: Params) -> Candidate:
    baseline = entry(params.baselines, "runs, ptq, peers or baselines in params.yaml", name)
    pretrained = load_model(baseline.model)
    if baseline.weights == "pretrained":
        return Candidate(pretrained, pretrained.origin, None, baseline.model_dump())
    origin = f"the architecture of {baseline.model} with random weights, seed {baseline.seed}"
    return Candidate(random_model(baseline.model, baseline.seed), origin, pretrained, baseline.model_dump())


def _scored_text(task: str, names: list[str], items: pd.DataFrame) -> dict:
    """Provenance of the documents that were scored (a text of one document has its windows as items)."""
    scored, documents = set(items.loc[items["task"] == task, "item"]), held_out_text(names)
    return text_provenance(names, [d for d in documents if d.id in scored] or documents)
