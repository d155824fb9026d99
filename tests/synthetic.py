"""Synthetic results with known truth: what the evaluation and training stages would have written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bitdistiller.analysis.study import Results, RunResult, StudyParams
from bitdistiller.config import Params
from bitdistiller.results import (
    Cost,
    CurvePoint,
    Environment,
    RunScores,
    Score,
    TrainingRecord,
    write_items,
)

ROOT = Path(__file__).parents[1]
PERPLEXITY = "held-out"
ENVIRONMENT = Environment(
    commit="0123456789abcdef0123456789abcdef01234567",
    dirty=False,
    python="3.11.7",
    versions={"torch": "2.13.0", "transformers": "5.23.0"},
    machine="Test CPU, Linux x86_64",
    cores=2,
    threads=1,
    bf16=False,
)


@dataclass(frozen=True)
class Truth:
    """What one condition really is: mean accuracy, perplexity, and how far its seeds scatter around both."""

    accuracy: float
    perplexity: float
    seed_spread: float = 0.005


def make_items(
    truth: Truth, seed: int, questions: int, chance: Mapping[str, float], documents: int, gain: float
) -> pd.DataFrame:
    """Items of one run. Difficulties are shared by all runs, so that pairing has something to gain."""
    shared, own = np.random.default_rng(0), np.random.default_rng(seed)
    wobble = own.normal(scale=truth.seed_spread)
    frames = []
    for task, level in chance.items():
        place = np.argsort(np.argsort(shared.random(questions))) / questions
        place = (place + own.normal(scale=0.05, size=questions)) % 1
        score = level + (truth.accuracy - gain) + wobble
        frames.append(
            pd.DataFrame(
                {
                    "task": task,
                    "item": [f"q{i}" for i in range(questions)],
                    "metric": "acc",
                    "value": (place < score).astype(float),
                    "weight": 1.0,
                }
            )
        )
    tokens = shared.integers(100, 300, documents)
    hardness = shared.normal(scale=0.3, size=documents)
    level = np.log(truth.perplexity) + wobble + hardness - np.average(hardness, weights=tokens)
    nll = tokens * (level + own.normal(scale=0.05, size=documents))
    frames.append(
        pd.DataFrame(
            {
                "task": PERPLEXITY,
                "item": [f"d{i}" for i in range(documents)],
                "metric": "nll",
                "value": nll,
                "weight": tokens.astype(float),
            }
        )
    )
    return pd.concat(frames, ignore_index=True)


def make_scores(run: str, model: str, bits: float, items: pd.DataFrame, chance: Mapping[str, float]) -> RunScores:
    scores = []
    for (task, metric), part in items.groupby(["task", "metric"], sort=False):
        n = len(part)
        if metric == "acc":
            value = float(part["value"].mean())
            error = (value * (1 - value) / n) ** 0.5
            bounds = {"low": max(0.0, value - 1.96 * error), "high": min(1.0, value + 1.96 * error)}
            scores.append(
                Score(task=task, metric="acc", value=value, standard_error=error, n=n, chance=chance[task], **bounds)
            )
        else:
            value = float(np.exp(part["value"].sum() / part["weight"].sum()))
            scores.append(
                Score(
                    task=task,
                    metric="perplexity",
                    value=value,
                    standard_error=0.02 * value,
                    low=0.96 * value,
                    high=1.04 * value,
                    n=n,
                    chance=None,
                )
            )
    return RunScores(
        run=run,
        model=model,
        origin=f"{model} is synthetic and was never trained.",
        bits=bits,
        bits_per_weight=bits + 0.5 if bits < 16 else 16.0,
        parameters=3_000_000,
        quantized_parameters=2_200_000 if bits < 16 else 0,
        scores=scores,
        parameters_used={"run": {"seed": 0}},
        data={PERPLEXITY: {"documents": 60, "sha256": "ab" * 32}},
        environment=ENVIRONMENT,
        cost=Cost(seconds=12.5, peak_bytes=700_000_000),
    )


def make_training(run: str, truth: Truth) -> TrainingRecord:
    curve = [CurvePoint(step=step, loss=0.4 + 2.0 * 0.94**step) for step in range(1, 61)]
    curve += [
        CurvePoint(step=step, validation_perplexity=truth.perplexity * (1 + 4 * 0.93**step))
        for step in (0, 10, 20, 30, 40, 50, 60)
    ]
    return TrainingRecord(
        run=run,
        teacher="micro-3m",
        steps=60,
        tokens=60 * 4096,
        gamma=0.41,
        final_loss=0.45,
        curve=sorted(curve, key=lambda point: point.step),
        parameters_used={"run": {"steps": 60, "seed": 0}},
        environment=ENVIRONMENT,
        cost=Cost(seconds=51.2, peak_bytes=1_100_000_000),
    )


def write_run(
    results: Path,
    run: str,
    truth: Truth,
    bits: float,
    seed: int,
    trained: bool,
    gain: float,
    questions: int = 600,
    chance: Mapping[str, float] | None = None,
    documents: int = 60,
    model: str = "micro-3m",
) -> None:
    """Write one run's folder. Accuracies of tasks of different chance share their gain over it."""
    chance = chance or {"continuation": 0.25}
    items = make_items(truth, seed, questions, chance, documents, gain)
    folder = results / "runs" / run
    make_scores(run, model, bits, items, chance).write(folder / "scores.json")
    write_items(items, folder / "items.csv")
    if trained:
        make_training(run, truth).write(folder / "train.json")


GOOD = {
    "full": Truth(0.50, 30.0),
    3: Truth(0.46, 34.0),
    2: Truth(0.41, 45.0),
    1: Truth(0.25, 1500.0),
    "random": Truth(0.25, 4300.0),
}


def bit_scaling_runs(
    results: Path,
    truths: Mapping | None = None,
    seeds: int = 3,
    questions: int = 600,
    chance: Mapping[str, float] | None = None,
    documents: int = 60,
) -> dict:
    """Write the runs of the bit-scaling study and return its part of ``params.yaml``."""
    truths = {**GOOD, **(truths or {})}
    chance = chance or {"continuation": 0.25}
    section = {
        "perplexity": PERPLEXITY,
        "full": {"full precision": ["micro-full"]},
        "random": [],
        "bits": {3: [], 2: [], 1: []},
    }
    shape = {
        "questions": questions,
        "chance": chance,
        "documents": documents,
        "gain": sum(chance.values()) / len(chance),
    }
    write_run(results, "micro-full", truths["full"], 16, 100, trained=False, **shape)
    for seed in range(seeds):
        for bits in (3, 2, 1):
            write_run(results, f"micro-int{bits}-s{seed}", truths[bits], bits, 10 * bits + seed, trained=True, **shape)
            section["bits"][bits].append(f"micro-int{bits}-s{seed}")
        write_run(results, f"micro-random-s{seed}", truths["random"], 16, 50 + seed, trained=False, **shape)
        section["random"].append(f"micro-random-s{seed}")
    return section


def make_params(section: dict | None, scale: str = "micro", root: Path = ROOT, study: str = "bit_scaling") -> Params:
    """A whole ``params.yaml`` around one study's part; only the names of its runs matter here."""
    section = section or {}
    bits = section.get("bits", {})
    run = {
        "quantizer": "q",
        "data": "d",
        "loss": "cakld",
        "gamma": "label",
        "temperature": 1.0,
        "ce_weight": 0.0,
        "allow_vocabulary_mismatch": False,
        "steps": 60,
        "batch_tokens": 4096,
        "micro_batches": 1,
        "learning_rate": 1e-3,
        "warmup_steps": 5,
        "weight_decay": 0.0,
        "checkpoint_every": 20,
        "validate_every": 10,
        "validation_text": ["wikipedia"],
        "validation_sequences": 8,
        "seed": 0,
    }
    quantizer = {
        "model": "micro-3m",
        "format": "int-asym",
        "bits": 2,
        "group_size": 64,
        "clip": "asymmetric",
        "scales": "fitted",
        "estimator": "pass-through",
        "text": ["wikipedia"],
        "calibration_tokens": 512,
        "calibration_length": 128,
    }
    text = {
        "generator": "micro-3m",
        "text": ["wikipedia"],
        "sequences": 0,
        "corpus_sequences": 64,
        "length": 128,
        "prompt_length": 16,
        "temperature": 0.7,
        "top_p": 1.0,
        "batch_size": 16,
        "seed": 0,
    }
    baselines = {name: {"model": "micro-3m", "weights": "random", "seed": 0} for name in section.get("random", [])}
    full = [name for names in section.get("full", {}).values() for name in names]
    baselines |= {name: {"model": "micro-3m", "weights": "pretrained", "seed": 0} for name in full}
    return Params.model_validate(
        {
            "root": str(root),
            "weights": ".",
            "scale": scale,
            "threads": 1,
            "training_text": {"t": text},
            "student_text": {},
            "data": {"d": {"teacher": "micro-3m", "training_text": "t"}},
            "quantizers": {"q": quantizer},
            "runs": {name: run for names in bits.values() for name in names},
            "baselines": baselines,
            "ptq": {},
            "evaluation": {"perplexity": {}, "tasks": {}, "batch_tokens": 4096, "seed": 0},
            "studies": {study: section} if section else {},
        }
    )


def paired_tables(values: Sequence[Sequence[float]], task: str = "t", metric: str = "acc") -> list[pd.DataFrame]:
    """Items tables straight from rows of values, one a run."""
    return [
        pd.DataFrame(
            {
                "task": task,
                "item": [f"q{i}" for i in range(len(row))],
                "metric": metric,
                "value": [float(v) for v in row],
                "weight": 1.0,
            }
        )
        for row in values
    ]


class Conditions(StudyParams):
    """Parameters of a study that is nothing but its conditions."""

    runs: dict[str, list[str]]

    def conditions(self) -> dict[str, list[str]]:
        return self.runs


def make_results(conditions: Mapping[str, Sequence[pd.DataFrame]], chance: Mapping[str, float]) -> Results:
    """What a study reads, straight from the items tables of each condition's runs."""
    names = {condition: [f"{condition}-s{i}" for i in range(len(tables))] for condition, tables in conditions.items()}
    runs = {}
    for condition, tables in conditions.items():
        for name, items in zip(names[condition], tables, strict=True):
            scored = items[items["metric"].isin(["acc", "nll"])]
            runs[name] = RunResult(make_scores(name, "micro-3m", 2, scored, chance), items, None)
    return Results(Conditions(runs=names), runs, ROOT / "reports" / "published")


@dataclass(frozen=True)
class Likeness:
    """How like its full-precision original a model is: share of answers flipped, KL in nats, share of tokens agreed."""

    flips: float
    kl: float
    agreement: float
    seed_spread: float = 0.002


def likeness_items(truth: Likeness, seed: int, questions: int = 600, documents: int = 60) -> pd.DataFrame:
    """Items of the metrics ``choice``, ``kl`` and ``agreement`` of one run; full precision answers 0 everywhere."""
    shared, own = np.random.default_rng(1), np.random.default_rng(seed)
    wobble = own.normal(scale=truth.seed_spread)
    place = (np.argsort(shared.random(questions)) / questions + own.normal(scale=0.05, size=questions)) % 1
    tokens = shared.integers(100, 300, documents)
    noise = own.normal(scale=0.01, size=documents)
    columns = {
        "choice": ("continuation", "q", (place < truth.flips + wobble).astype(float), np.ones(questions)),
        "kl": (PERPLEXITY, "d", tokens * (truth.kl + wobble + noise), tokens),
        "agreement": (PERPLEXITY, "d", np.round(tokens * (truth.agreement + wobble + noise)), tokens),
    }
    frames = []
    for metric, (task, letter, value, weight) in columns.items():
        items = [f"{letter}{i}" for i in range(len(value))]
        frames.append(pd.DataFrame({"task": task, "item": items, "metric": metric, "value": value, "weight": weight}))
    return pd.concat(frames, ignore_index=True).astype({"weight": float})
