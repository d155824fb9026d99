"""Synthetic results with known truth: what the evaluation and training stages would have written.

``write_study`` writes everything that one study reads. Its conditions and runs come from a parameter file; what each
condition really is comes from ``default_truth`` (by the bits of the run behind it) and from overrides by label.
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from bitdistiller.analysis.study import Results, RunResult, StudyParams
from bitdistiller.config import Params
from bitdistiller.results import (
    ITEM_COLUMNS,
    Cost,
    CurvePoint,
    Environment,
    RunScores,
    Score,
    TeacherRecord,
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
    """What one condition really is.

    Attributes:
        accuracy: mean over tasks.
        seed_spread: how far seeds scatter around accuracy and log perplexity.
        kl, agreement: distance to the full-precision original.
        scatter: how far a run is from others item by item.
        solved, bits: share of the items of MMLU, GSM8K and HumanEval that it solves, and bits a byte of solutions.
        start: validation perplexity before training over that at its end.
        exact: whether means over documents are as stated in spite of the scatter, or a sample's.
        scores, training: fields of its ``RunScores`` and ``TrainingRecord`` that a study reads besides.
    """

    accuracy: float
    perplexity: float
    seed_spread: float = 0.005
    kl: float = 0.3
    agreement: float = 0.7
    solved: float = 0.4
    bits: float = 0.6
    scatter: float = 0.05
    start: float = 5.0
    exact: bool = False
    scores: Mapping = field(default_factory=dict)
    training: Mapping = field(default_factory=dict)


@dataclass(frozen=True)
class Confidence:
    """A teacher's gammas over one data set: without padding, and by which share padding lowers them.

    ``spread`` is how far data sets scatter around that share.
    """

    label: float = 0.4
    max: float = 0.5
    raised: float = 0.0554
    spread: float = 0.005
    padding: float = 0.05


def make_items(
    truth: Truth,
    seed: int,
    questions: int,
    chance: Mapping[str, float],
    documents: int,
    gain: float,
    perplexity: str = PERPLEXITY,
) -> pd.DataFrame:
    """Items of one run. Difficulties are shared by all runs, so that pairing has something to gain.

    Args:
        perplexity: name of the held-out text.
    """
    shared, own = np.random.default_rng(0), np.random.default_rng(seed)
    wobble = own.normal(scale=truth.seed_spread)
    frames = []
    for task, level in chance.items():
        place = np.argsort(np.argsort(shared.random(questions))) / questions
        place = (place + own.normal(scale=truth.scatter, size=questions)) % 1
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
    nll = tokens * (level + _noise(own, truth, tokens))
    frames.append(
        pd.DataFrame(
            {
                "task": perplexity,
                "item": [f"d{i}" for i in range(documents)],
                "metric": "nll",
                "value": nll,
                "weight": tokens.astype(float),
            }
        )
    )
    return pd.concat(frames, ignore_index=True)


def _noise(own: np.random.Generator, truth: Truth, tokens: np.ndarray) -> np.ndarray:
    noise = own.normal(scale=truth.scatter, size=len(tokens))
    return noise - np.average(noise, weights=tokens) if truth.exact else noise


def choice_items(items: pd.DataFrame, chance: Mapping[str, float]) -> pd.DataFrame:
    """The answers behind right and wrong; a question's wrong answer is the same one in every run."""
    frames = []
    for task, answers in items[items["metric"] == "acc"].groupby("task", sort=False):
        options = round(1 / chance[task])
        right = np.random.default_rng(len(answers)).integers(options, size=len(answers))
        frames.append(answers.assign(metric="choice", value=(right + 1 - answers["value"]) % options))
    return pd.concat(frames)


def distance_items(items: pd.DataFrame, truth: Truth, seed: int) -> pd.DataFrame:
    """KL to the full-precision original and top-1 agreement with it, on the documents of ``items``."""
    documents, own = items[items["metric"] == "nll"], np.random.default_rng([seed, 1])
    tokens = documents["weight"].to_numpy()
    kl = truth.kl * (1 + _noise(own, truth, tokens))
    agreement = np.clip(truth.agreement + _noise(own, truth, tokens), 0, 1)
    return pd.concat(
        [
            documents.assign(metric="kl", value=tokens * kl),
            documents.assign(metric="agreement", value=tokens * agreement),
        ]
    )


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
        model_sha256="0" * 64,
        scores=scores,
        parameters_used={"run": {"seed": 0}},
        data={PERPLEXITY: {"documents": 60, "sha256": "ab" * 32}},
        environment=ENVIRONMENT,
        cost=Cost(seconds=12.5, peak_bytes=700_000_000),
    )


def make_training(run: str, truth: Truth, seed: int) -> TrainingRecord:
    """Curves of one run; all runs validate on the same 24 sequences."""
    curve = [CurvePoint(step=step, loss=0.4 + 2.0 * 0.94**step) for step in range(1, 61)]
    own = np.random.default_rng(1).normal(size=24) + np.random.default_rng(seed).normal(scale=truth.scatter, size=24)
    for step in (0, 10, 20, 30, 40, 50, 60):
        perplexity = truth.perplexity * (1 + (truth.start - 1) * 0.93**step)
        nll = (np.log(perplexity) + own - own.mean()).tolist()
        curve.append(CurvePoint(step=step, validation_perplexity=perplexity, validation_nll=nll))
    return TrainingRecord(
        run=run,
        teacher="micro-3m",
        steps=60,
        tokens=60 * 4096,
        gamma=0.41,
        final_loss=0.45,
        curve=sorted(curve, key=lambda point: point.step),
        parameters_used={"run": {"steps": 60, "validate_every": 10, "seed": 0}},
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
    original: bool = False,
    perplexity: str = PERPLEXITY,
) -> None:
    """Write one run's folder. Accuracies of tasks of different chance share their gain over it.

    Args:
        original: full precision, which is not compared with itself.
        perplexity: name of the held-out text.
    """
    chance = chance or {"continuation": 0.25}
    items = make_items(truth, seed, questions, chance, documents, gain, perplexity)
    folder = results / "runs" / run
    scores = make_scores(run, model, bits, items, chance).model_dump() | dict(truth.scores)
    RunScores.model_validate(scores).write(folder / "scores.json")
    beside = [choice_items(items, chance)] + ([] if original else [distance_items(items, truth, seed)])
    write_items(pd.concat([items, *beside]), folder / "items.csv")
    if trained:
        training = make_training(run, truth, seed).model_dump() | dict(truth.training)
        TrainingRecord.model_validate(training).write(folder / "train.json")


def reasoning_items(truth: Truth, seed: int, questions: int = 300) -> pd.DataFrame:
    """Items of MMLU, GSM8K and HumanEval, on which all runs find the same ones hard."""
    shared, own = np.random.default_rng(2), np.random.default_rng([seed, 2])
    frames = []
    for task, metric in (("mmlu", "acc"), ("gsm8k", "exact_match_flexible"), ("humaneval", "pass_at_1")):
        names = [f"{'stem/algebra/' if index % 2 else 'other/law/'}{index}" for index in range(questions)]
        place = (np.argsort(np.argsort(shared.random(questions))) + 0.5) / questions
        place = (place + own.normal(scale=truth.scatter / 10, size=questions)) % 1
        frames.append(pd.DataFrame({"item": names, "value": (place < truth.solved).astype(float), "weight": 1.0}))
        frames[-1] = frames[-1].assign(task=task, metric=metric)
        if task != "mmlu":
            size = shared.integers(100, 300, questions)
            hardness = shared.normal(scale=0.1, size=questions)
            bits = truth.bits * (1 + hardness - np.average(hardness, weights=size) + _noise(own, truth, size))
            row = pd.DataFrame({"item": names, "value": size * bits, "weight": size.astype(float)})
            frames.append(row.assign(task=task, metric="bits_per_byte"))
    return pd.concat(frames, ignore_index=True)[ITEM_COLUMNS]


def write_reasoning(folder: Path, truth: Truth, seed: int) -> None:
    """What the reasoning stage leaves beside the scores of a run."""
    items, record = reasoning_items(truth, seed), RunScores.read(folder / "scores.json")
    scores = []
    for (task, metric), part in items.groupby(["task", "metric"], sort=False):
        value = part["value"].sum() / part["weight"].sum()
        bounds = {"low": 0.9 * value, "high": 1.1 * value, "chance": 0.25 if task == "mmlu" else None}
        scores.append(Score(task=task, metric=metric, value=value, standard_error=0.05 * value, n=len(part), **bounds))
    record.model_copy(update={"scores": scores, "weights": None}).write(folder / "reasoning" / "scores.json")
    write_items(items, folder / "reasoning" / "items.csv")


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
    write_run(results, "micro-full", truths["full"], 16, 100, trained=False, original=True, **shape)
    for seed in range(seeds):
        for bits in (3, 2, 1):
            write_run(results, f"micro-int{bits}-s{seed}", truths[bits], bits, 10 * bits + seed, trained=True, **shape)
            section["bits"][bits].append(f"micro-int{bits}-s{seed}")
        write_run(results, f"micro-random-s{seed}", truths["random"], 16, 50 + seed, trained=False, **shape)
        section["random"].append(f"micro-random-s{seed}")
    return section


RANDOM_WEIGHTS = Truth(0.25, 4000.0, kl=6.0, agreement=0.02)
BY_BITS = {
    16: Truth(0.60, 30.0),
    4: Truth(0.59, 31.0, kl=0.03, agreement=0.95),
    3: Truth(0.56, 34.0, kl=0.1, agreement=0.85),
    2: Truth(0.50, 42.0, kl=0.3, agreement=0.7),
    1: Truth(0.30, 700.0, kl=2.0, agreement=0.2),
}
STEADY = {"seed_spread": 0.0, "scatter": 0.005, "exact": True}


def default_truth(params: Params, run: str) -> Truth:
    """What a run is unless told otherwise: like every other of its bits, and almost without noise."""
    baseline = params.baselines.get(run)
    if baseline:
        return replace(RANDOM_WEIGHTS if baseline.weights == "random" else BY_BITS[16], **STEADY)
    return replace(BY_BITS[_quantizer(params, run).bits], **STEADY)


def _quantizer(params: Params, run: str):
    return params.quantizers[(params.runs | params.ptq | params.peers)[run].quantizer]


def write_study(
    results: Path,
    params: Params,
    chosen: StudyParams,
    overrides: Mapping[str, Mapping] | None = None,
    questions: int = 600,
    documents: int = 60,
) -> None:
    """Write what a study reads, by its own parameters: folders of its runs, records of its teachers.

    Args:
        overrides: fields of ``Truth`` by condition, or of ``Confidence`` by data set; ``students`` and ``teachers``
            stand for all of either, and a name of its own wins.

    Raises:
        ValueError: an override that names no condition or data set, or a run that is to be two things at once.
    """
    overrides, conditions = overrides or {}, chosen.conditions()
    if unknown := set(overrides) - {*conditions, *chosen.teachers, "students", "teachers"}:
        raise ValueError(f"the study has no condition or teacher {', '.join(sorted(unknown))}")
    truths: dict[str, Truth] = {}
    for condition, runs in conditions.items():
        common = {} if condition in chosen.full else overrides.get("students", {})
        for run in runs:
            truth = replace(default_truth(params, run), **(common | overrides.get(condition, {})))
            if truths.setdefault(run, truth) != truth:
                raise ValueError(f"{run} stands under {condition} and another condition; override both alike")
    for run, truth in truths.items():
        _write_params_run(results, params, run, truth, questions, documents, chosen.perplexity)
        if chosen.reasoning:
            write_reasoning(results / "runs" / run, truth, zlib.crc32(run.encode()))
    for name in chosen.teachers:
        truth = replace(_default_confidence(params, name), **(overrides.get("teachers", {}) | overrides.get(name, {})))
        make_teacher(name, params.data[name].teacher, truth).write(results / "teachers" / f"{name}.json")


def _write_params_run(
    results: Path, params: Params, run: str, truth: Truth, questions: int, documents: int, perplexity: str | None
) -> None:
    """A run of a parameter file: its model, its bits, and the tasks and the text on which it is scored there."""
    baseline = params.baselines.get(run)
    model = baseline.model if baseline else _quantizer(params, run).model
    millions = re.search(r"(\d+)m\b", model)
    size = 1_000_000 * int(millions.group(1) if millions else 1000)
    sizes = {"parameters": size, "quantized_parameters": 0 if baseline else 3 * size // 4}
    write_run(
        results,
        run,
        replace(truth, scores=sizes | dict(truth.scores)),
        bits=16 if baseline else _quantizer(params, run).bits,
        seed=zlib.crc32(run.encode()),
        trained=run in params.runs,
        gain=0.25,
        questions=questions,
        chance=dict.fromkeys(params.evaluation.tasks, 0.25),
        documents=documents,
        model=model,
        original=baseline is not None and baseline.weights == "pretrained",
        perplexity=perplexity or next(iter(params.evaluation.perplexity)),
    )


def _default_confidence(params: Params, name: str) -> Confidence:
    """Corpus text comes in full blocks, so it has no padding."""
    padded = params.texts[params.data[name].training_text].sequences > 0
    return Confidence() if padded else Confidence(raised=0.0, spread=0.0, padding=0.0)


def make_teacher(name: str, teacher: str, truth: Confidence) -> TeacherRecord:
    noise = np.random.default_rng(zlib.crc32(name.encode())).normal(scale=truth.spread, size=2)
    label, largest = 1 + truth.raised + noise
    return TeacherRecord(
        teacher=teacher,
        teacher_origin=f"{teacher} is synthetic and was never trained.",
        gammas={
            "label": truth.label,
            "max": truth.max,
            "label-with-padding": truth.label / label,
            "max-with-padding": truth.max / largest,
        },
        tokens=100_000,
        padding=truth.padding,
        dtype="torch.bfloat16",
        text_sha256="ab" * 32,
    )


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
            "instruction_text": {},
            "reasoning": {},
            "data": {"d": {"teacher": "micro-3m", "training_text": "t"}},
            "quantizers": {"q": quantizer},
            "runs": {name: run for names in bits.values() for name in names},
            "baselines": baselines,
            "ptq": {},
            "peers": {},
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

    full: dict[str, list[str]] = {}
    runs: dict[str, list[str]]

    def students(self) -> dict[str, list[str]]:
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
