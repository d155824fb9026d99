"""A named run or baseline -> its scores, with everything that a reader needs to trust them."""

from pathlib import Path

import pandas as pd
import torch

from bitdistiller.config import Params, entry
from bitdistiller.data.text import text_provenance
from bitdistiller.evaluate import evaluate_model
from bitdistiller.evaluate.local import held_out_text
from bitdistiller.models import LoadedModel, load_model, model_origin, random_model
from bitdistiller.provenance import Stopwatch, environment
from bitdistiller.quant import bake, make_format, quantizable, quantize_model
from bitdistiller.results import RunScores

FULL_PRECISION_BITS = 16


def evaluate_run(name: str, params: Params, artifacts: Path) -> tuple[RunScores, pd.DataFrame]:
    """Scores and per-item results of a trained student or of a baseline."""
    watch = Stopwatch()
    torch.set_num_threads(params.threads)
    scored, origin, bits, bits_per_weight, quantized, used = _scored_model(name, params, artifacts)
    scores, items = evaluate_model(scored.model, scored.tokenizer, params.evaluation)
    record = RunScores(
        run=name,
        model=used["model"],
        origin=origin,
        bits=bits,
        bits_per_weight=bits_per_weight,
        parameters=sum(p.numel() for p in scored.model.parameters()),
        quantized_parameters=quantized,
        scores=scores,
        parameters_used={**used, "evaluation": params.evaluation.model_dump()},
        data={key: _scored_text(key, section.text, items) for key, section in params.evaluation.perplexity.items()},
        environment=environment(),
        cost=watch.cost(),
    )
    return record, items


def _scored_text(task: str, names: list[str], items: pd.DataFrame) -> dict:
    """Provenance of the documents that were scored (a text of one document has its windows as items)."""
    scored, documents = set(items.loc[items["task"] == task, "item"]), held_out_text(names)
    return text_provenance(names, [d for d in documents if d.id in scored] or documents)


def _scored_model(name: str, params: Params, artifacts: Path) -> tuple[LoadedModel, str, float, float, int, dict]:
    if name in params.runs:
        return _student(name, params, artifacts)
    baseline = entry(params.baselines, "runs or baselines in params.yaml", name)
    if baseline.weights == "random":
        loaded = random_model(baseline.model, baseline.seed)
        origin = f"the architecture of {baseline.model} with random weights, seed {baseline.seed}"
    else:
        loaded = load_model(baseline.model)
        origin = loaded.origin
    return loaded, origin, FULL_PRECISION_BITS, FULL_PRECISION_BITS, 0, baseline.model_dump()


def _student(name: str, params: Params, artifacts: Path) -> tuple[LoadedModel, str, float, float, int, dict]:
    run = params.runs[name]
    quantizer = params.quantizers[run.quantizer]
    fmt = make_format(quantizer.format, bits=quantizer.bits, group_size=quantizer.group_size)
    student = load_model(str(artifacts / "students" / name))
    layers = quantizable(student.model).values()
    stored_bits = sum(layer.weight.numel() * fmt.bits_per_weight(layer.in_features) for layer in layers)
    quantized = quantize_model(student.model, fmt)
    bake(student.model)
    origin = f"trained from {quantizer.model}: {model_origin(quantizer.model)}"
    used = {"model": quantizer.model, "run": run.model_dump(), "quantizer": quantizer.model_dump()}
    return student, origin, quantizer.bits, stored_bits / quantized, quantized, used
