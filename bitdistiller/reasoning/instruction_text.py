"""Domain data: a generator's answers to instructions, as a text that students train on.

BitDistiller's coding and reasoning students train on what their teacher writes to the instructions of the domain (arXiv
2402.10631, on data generation). A sequence is the generator's chat template around an instruction and its answer, with
the end token where it ended; the template of a generator that has none is ``Question: ... Answer:``, or nothing around
prompts of the hub, as BitDistiller asks base models (its ``data/generation/data_utils.py``). The loss is taken over all
of it, as over any other training text.

No piece of a test may be trained on (see ``contamination``). Instructions that hold one are never asked. A generator
may also recite a test that nobody asked it for, so what it wrote is checked once more, together with its question,
as the student will read it. A sequence that fails is dropped and counted, and not replaced: to refuse the whole text
would throw hours of writing away for a stock phrase of code, and the text then has a few sequences fewer than asked.
"""

import ast
import json
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path

import torch

from bitdistiller.assets import sha256_file
from bitdistiller.config import InstructionTextParams
from bitdistiller.data.blocks import encode, start_token
from bitdistiller.data.generate import TrainingSequence, statistics
from bitdistiller.data.overlap import NGRAM
from bitdistiller.device import device, has_bf16
from bitdistiller.errors import UserError
from bitdistiller.models import LoadedModel, require_context
from bitdistiller.provenance import weights_sha256
from bitdistiller.reasoning.contamination import leaks, scored_texts
from bitdistiller.reasoning.decoding import Prompt, Sampling
from bitdistiller.reasoning.prompts import SOURCES, Instruction, chat_tokens, instruction_provenance, instructions
from bitdistiller.reasoning.writing import Writer, unfinished
from bitdistiller.sandbox.humaneval import code_of

Write = Callable[[LoadedModel, list[list[int]]], list[list[int]]]


def answer_instructions(params: InstructionTextParams, source: LoadedModel, path: Path) -> dict:
    """``make_instruction_text`` with the answers that ``source`` writes itself; an interrupted call goes on.

    The journals in ``unfinished(path)`` may be deleted when the record is kept.
    """
    model = source.model.to(device(), torch.bfloat16 if has_bf16() else torch.float32)
    writer = Writer(model, source.tokenizer, params.batch_tokens, unfinished(path), weights_sha256(model))

    def write(_: LoadedModel, prompts: list[list[int]]) -> list[list[int]]:
        sampling = Sampling(params.length, params.temperature, params.top_p, params.seed)
        asked = [Prompt(str(i), prompt, most=params.length - len(prompt)) for i, prompt in enumerate(prompts)]
        return [answer.tokens for answer in writer.write(asked, sampling, "answers")]

    return make_instruction_text(params, source, path, write)


def make_instruction_text(params: InstructionTextParams, source: LoadedModel, path: Path, write: Write) -> dict:
    """Write answers to instructions as JSONL, one sequence a line, and return their provenance and statistics.

    Args:
        source: the generator.
        write: prompts as token ids -> the token ids that the generator writes after each, with its end token where it
            ended by itself. What would make a sequence longer than ``length`` is cut off.

    Raises:
        UserError: an unknown source, too few instructions, or no answer without a piece of a test.
    """
    require_context(source, params.length)
    scored, asked = scored_texts(), instructions(list(params.sources))
    leaked = leaks({one.id: one.text for one in asked}, scored)
    clean = [one for one in asked if one.id not in set().union(*leaked.values())]
    prompts = {one.id: prompt_tokens(source.tokenizer, one.text, one.raw) for one in clean}
    fitting = [one for one in clean if len(prompts[one.id]) <= params.length // 2]
    chosen = _choose(fitting, params)
    written = write(source, [prompts[one.id] for one in chosen])
    sequences = [
        _sequence(source.tokenizer, one, prompts[one.id], answer, params.length)
        for one, answer in zip(chosen, written, strict=True)
    ]
    recited = leaks({sequence.document: sequence.text for sequence in sequences}, scored)
    kept = [sequence for sequence in sequences if sequence.document not in set().union(*recited.values())]
    if not kept:
        raise UserError(f"all {len(sequences)} answers of {source.name} hold a piece of a test; use another generator")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(sequence)) + "\n" for sequence in kept))
    return {
        "generator": params.generator,
        "generator_origin": source.origin,
        "text": instruction_provenance(list(params.sources), asked),
        "sha256": sha256_file(path),
        "sequences": len(kept),
        "tokens": sum(len(sequence.input_ids) for sequence in kept),
        "statistics": statistics(kept, source.tokenizer.eos_token_id) | _python(source.tokenizer, kept),
        "by_source": dict(Counter(_source(sequence) for sequence in kept)),
        "too_long": len(clean) - len(fitting),
        "contamination": {
            "ngram": NGRAM,
            "instructions": _count(leaked, len(asked)),
            "sequences": _count(recited, len(sequences)),
        },
    }


def prompt_tokens(tokenizer, instruction: str, raw: bool = False) -> list[int]:
    """Token ids after which a model answers: its chat template, question and answer, or the bare prompt."""
    if tokenizer.chat_template:
        return chat_tokens(tokenizer, instruction.strip())
    text = instruction if raw else f"Question: {instruction}\nAnswer:"
    return [start_token(tokenizer), *encode(tokenizer, [text])[0]]


def _choose(fitting: list[Instruction], params: InstructionTextParams) -> list[Instruction]:
    """``sequences`` instructions in seeded order: some of each source in turn, as long as it has any."""
    turns = params.sources if isinstance(params.sources, dict) else dict.fromkeys(params.sources, 1)
    queues = []
    for name, count in turns.items():
        own = [one for one in fitting if one.source == name]
        order = torch.randperm(len(own), generator=torch.Generator().manual_seed(params.seed)).tolist()
        queues.append([[own[index] for index in order[start : start + count]] for start in range(0, len(own), count)])
    chosen = [one for turn in zip_longest(*queues, fillvalue=()) for part in turn for one in part]
    if len(chosen) < params.sequences:
        raise UserError(
            f"{', '.join(params.sources)} give {len(chosen)} of {params.sequences} instructions that leave half of "
            f"{params.length} tokens to the answer; ask for fewer, or raise the length"
        )
    return chosen[: params.sequences]


def _sequence(tokenizer, one: Instruction, prompt: list[int], answer: list[int], length: int) -> TrainingSequence:
    ids = (prompt + answer)[:length]
    return TrainingSequence(one.id, len(prompt), ids, tokenizer.decode(ids, skip_special_tokens=True))


def _source(sequence: TrainingSequence) -> str:
    return sequence.document.split("/")[0]


def _count(found: dict[str, set[str]], checked: int) -> dict[str, int | dict[str, int]]:
    """How many were left out, and through which benchmarks; one may have been found through several."""
    return {
        "checked": checked,
        "left_out": len(set().union(*found.values())),
        "by_benchmark": {benchmark: len(ids) for benchmark, ids in found.items()},
    }


def _python(tokenizer, sequences: Sequence[TrainingSequence]) -> dict[str, float]:
    """Share of the answers to programming tasks that hold a fenced block of code which Python can parse."""
    answers = [
        tokenizer.decode(sequence.input_ids[sequence.prompt_length :], skip_special_tokens=True)
        for sequence in sequences
        if SOURCES[_source(sequence)].python
    ]
    return {"parseable_python": sum(map(_parses, answers)) / len(answers)} if answers else {}


def _parses(answer: str) -> bool:
    if "```" not in answer:
        return False
    try:
        with warnings.catch_warnings(action="ignore"):  # what the code is warned of concerns nobody here
            return bool(ast.parse(code_of(answer)).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
