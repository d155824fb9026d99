"""Task accuracy through lm-eval, with its own task definitions over local data.

Prompts, choices, tokenisation, metrics and their standard errors are lm-eval's. For each benchmark that
``bitdistiller.evaluate.benchmarks`` holds, a YAML of a few lines is written that includes the official one and
replaces only where the data comes from: this project's own file, or (``source: hub``) the official files at a pinned
commit. Any other name is a task of lm-eval that fetches its data from the hub itself, unpinned.
The lower-level ``lm_eval.evaluator.evaluate`` is called, as ``simple_evaluate`` also runs a dozen programs for an
environment report; and lm-eval's own tasks are indexed (thousands of YAMLs, many seconds) only if one is asked for.

``limit`` takes a subset of items that depends on the task, the seed and nothing else, so that all models meet
the same items and a smaller limit is part of a larger one. (The first items would not do: those of HellaSwag
all come from one of its two sources.) lm-eval could be told the subset, but would then read, and where a task says so
process, the whole data set several times over; so it is given a data set that holds nothing else.
"""

import hashlib
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import datasets
import lm_eval.tasks
import numpy as np
import pandas as pd
import yaml
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate
from scipy.stats import binomtest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitdistiller.config import TaskParams
from bitdistiller.data.hub import data_files, hub_data
from bitdistiller.errors import UserError
from bitdistiller.evaluate.benchmarks import BENCHMARKS, Benchmark, benchmark_file, item_id
from bitdistiller.evaluate.local import folder
from bitdistiller.evaluate.shared_context import SharedContextLM
from bitdistiller.results import ITEM_COLUMNS, Score

METRICS = ("acc", "acc_norm")


def definition(benchmark: Benchmark) -> dict:
    """lm-eval configuration of a benchmark: the official task with local data."""
    official = Path(lm_eval.tasks.__file__).parent / benchmark.base
    return {
        "include": str(official if "/" in benchmark.base else Path(__file__).parent / benchmark.base),
        "task": benchmark.name,
        "dataset_path": benchmark.loader,
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {benchmark.split: str(benchmark_file(benchmark.name))},
            "cache_dir": str(folder() / "datasets"),
        },
        "training_split": None,
        "validation_split": None,
        "test_split": None,
        f"{benchmark.split}_split": benchmark.split,
    }


def hub_definition(benchmark: Benchmark) -> dict:
    """lm-eval configuration of a benchmark: the official task with the official data at its pinned commit."""
    return {
        "include": str(Path(lm_eval.tasks.__file__).parent / benchmark.base),
        "task": benchmark.name,
        "dataset_path": hub_data()[benchmark.name].loader,
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": data_files(benchmark.name, list(hub_data()[benchmark.name].files)),
            "cache_dir": str(folder() / "datasets"),
        },
    }


def load_tasks(tasks: Mapping[str, TaskParams], seed: int) -> dict:
    """lm-eval task objects by name, with the number of examples set.

    Raises:
        UserError: an unknown name, a group of tasks, data that cannot be fetched, or examples where there are none.
    """
    local = [name for name in tasks if name in BENCHMARKS]
    for name, task in tasks.items():
        if task.source == "hub" and name not in hub_data().keys() & BENCHMARKS.keys():
            raise UserError(f"task {name}: hub.yaml pins no data of it; leave out `source: hub`")
        if name in local and task.source == "own" and task.shots:
            raise UserError(
                f"task {name}: its local data has no training items to show as examples; set shots to 0, or source to "
                "hub"
            )
    with tempfile.TemporaryDirectory() as written:
        for name in local:
            define = hub_definition if tasks[name].source == "hub" else definition
            Path(written, f"{name}.yaml").write_text(yaml.safe_dump(define(BENCHMARKS[name])))
        # Indexing lm-eval's own tasks takes seconds; only tasks from the hub need it.
        manager = lm_eval.tasks.TaskManager(include_path=written, include_defaults=len(local) < len(tasks))
        loaded = {name: _load(manager, name) for name in tasks}
    for name, task in loaded.items():
        task.set_config(key="num_fewshot", value=tasks[name].shots)
        task.set_fewshot_seed(seed=seed)
    return loaded


def _load(manager: lm_eval.tasks.TaskManager, name: str):
    if name not in manager.all_subtasks:
        if name in manager.all_tasks:
            raise UserError(f"task {name}: this is a group of tasks in lm-eval; list its tasks one by one")
        raise UserError(f"unknown task {name!r}: use {', '.join(BENCHMARKS)} or a task of lm-eval")
    try:
        task = manager.load(name)["tasks"][name]
    except (ConnectionError, OSError) as error:
        raise UserError(
            f"task {name}: its data cannot be read ({' '.join(str(error).split())}); data of the hub needs "
            "HF_HUB_OFFLINE=0 once, or a copy in its cache"
        ) from None
    if task.OUTPUT_TYPE != "multiple_choice":
        raise UserError(f"task {name}: only multiple-choice tasks are scored, this one is {task.OUTPUT_TYPE}")
    return task


def subset(name: str, total: int, limit: int, seed: int) -> list[int]:
    """Sorted indices of the ``limit`` items of a task that are scored, out of ``total``."""
    if name in BENCHMARKS and BENCHMARKS[name].interleaved:
        return list(range(min(limit, total)))

    def rank(index: int) -> bytes:
        return hashlib.sha256(f"{seed}:{name}:{index}".encode()).digest()

    return sorted(sorted(range(total), key=rank)[:limit])


def score_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Mapping[str, TaskParams],
    batch_tokens: int,
    seed: int,
) -> tuple[list[Score], pd.DataFrame]:
    """Zero-shot (or few-shot) accuracy of a model: scores, and one row an item and metric.

    Args:
        tasks: name -> how many items and examples. Names are keys of ``BENCHMARKS`` or tasks of lm-eval.
        batch_tokens: padded tokens of one forward pass.
        seed: decides which items a limit takes.

    Raises:
        UserError: see ``load_tasks``; or a limit of a single item.
    """
    with quiet():
        loaded = load_tasks(tasks, seed)
        chosen = {name: restrict(task, tasks[name].limit, seed) for name, task in loaded.items()}
        judge = SharedContextLM(model, tokenizer, batch_tokens)
        found = evaluate(judge, {"tasks": loaded})
    scores, frames = [], []
    for name, task in loaded.items():
        samples = found["samples"][name]
        frames.append(_item_rows(task, chosen[name], samples))
        scores += _scores(task, samples, found["results"][name])
    return scores, pd.concat(frames, ignore_index=True)


def restrict(task: Task, limit: int, seed: int) -> list[int]:
    """Leave a task the items of its ``subset``, processed; returns their places in the whole data set.

    Raises:
        UserError: a single item.
    """
    docs = task.eval_docs
    indices = subset(task.task_name, len(docs), limit, seed)
    if len(indices) < 2:
        raise UserError(f"task {task.task_name}: a single item has no standard error; raise its limit")
    split = task.config.test_split if task.has_test_docs() else task.config.validation_split
    task.dataset = {split: [docs[index] for index in indices]}
    task.set_config(key="process_docs", value=None)
    return indices


def choice(task: Task, sample: Mapping) -> int:
    """Index of the answer with the highest log-likelihood, the one that lm-eval's ``acc`` takes.

    Where a task also asks for choices without their context, those answers come last.
    """
    answers = sample["filtered_resps"][: len(task.doc_to_choice(sample["doc"]))]
    return int(np.argmax([log_likelihood for log_likelihood, _ in answers]))


def _item_rows(task: Task, indices: list[int], samples: list[dict]) -> pd.DataFrame:
    items = [item_id(sample["doc"], indices[sample["doc_id"]]) for sample in samples]
    rows = [
        (task.task_name, item, metric, sample[metric], 1.0)
        for metric in METRICS
        for item, sample in zip(items, samples, strict=True)
        if metric in sample
    ]
    rows += [
        (task.task_name, item, "choice", float(choice(task, sample)), 1.0)
        for item, sample in zip(items, samples, strict=True)
    ]
    return pd.DataFrame(rows, columns=ITEM_COLUMNS)


def _scores(task: Task, samples: list[dict], result: Mapping[str, object]) -> list[Score]:
    chance = sum(1 / len(task.doc_to_choice(sample["doc"])) for sample in samples) / len(samples)
    scores = []
    for metric in METRICS:
        if f"{metric},none" not in result:
            continue
        right = round(sum(sample[metric] for sample in samples))
        interval = binomtest(right, len(samples)).proportion_ci(confidence_level=0.95, method="wilson")
        scores.append(
            Score(
                task=task.task_name,
                metric=metric,
                value=result[f"{metric},none"],
                standard_error=result[f"{metric}_stderr,none"],
                low=interval.low,
                high=interval.high,
                n=len(samples),
                chance=chance,
            )
        )
    return scores


@contextmanager
def quiet() -> Iterator[None]:
    """Errors of lm-eval and its progress over requests, but none of its notes nor the bars of ``datasets``."""
    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, datasets.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
