"""A name of ``params.yaml`` -> its scores on MMLU, GSM8K and HumanEval, and what it wrote.

These are apart from the scores of every run (``evaluate.run``), since they take longer and small models answer none of
them. Which are scored, and how, stands under ``reasoning`` in the parameters.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import torch

from bitdistiller.config import Params, ReasoningParams, entry
from bitdistiller.device import device
from bitdistiller.evaluate.run import load_candidate
from bitdistiller.provenance import Stopwatch, environment
from bitdistiller.reasoning.answers import Answer
from bitdistiller.reasoning.writing import Writer, unfinished
from bitdistiller.results import RunScores, Score


def score_reasoning(
    name: str, params: Params, artifacts: Path, without_isolation: bool = False
) -> tuple[RunScores, pd.DataFrame]:
    """Scores and per-item results of a model; its answers are written to ``artifacts/answers/NAME.jsonl``.

    What it wrote before it was interrupted is not written again; the journals in ``unfinished`` of that file may be
    deleted when all of this is kept.

    Raises:
        UserError: no such name, its artifacts are missing, a benchmark cannot be scored with it, or this machine
            cannot isolate the programs that it writes.
    """
    watch, chosen = Stopwatch(), entry(params.reasoning, "reasoning", name)
    torch.set_num_threads(params.threads)
    candidate = load_candidate(name, params, artifacts)
    candidate.settle(params.evaluation)
    candidate.loaded.model.to(device())
    described = candidate.described()
    candidate = replace(candidate, original=None)  # no longer needed, and as large as the model
    path = artifacts / "answers" / f"{name}.jsonl"
    writer = Writer(
        candidate.loaded.model,
        candidate.loaded.tokenizer,
        chosen.batch_tokens,
        unfinished(path),
        described["model_sha256"],
    )
    scores, items, answers = score_benchmarks(writer, chosen, without_isolation)
    _write_answers(answers, path)
    record = RunScores(
        run=name,
        **described,
        scores=scores,
        parameters_used={**candidate.used, "reasoning": chosen.model_dump()},
        data={},
        environment=environment(),
        cost=watch.cost(),
    )
    return record, items


def score_benchmarks(
    writer: Writer, params: ReasoningParams, without_isolation: bool = False
) -> tuple[list[Score], pd.DataFrame, list[Answer]]:
    """The benchmarks that ``params`` ask for: scores, item rows and written answers."""
    scores: list[Score] = []
    frames: list[pd.DataFrame] = []
    answers: list[Answer] = []
    if params.humaneval is not None:
        from bitdistiller.reasoning.humaneval import score_humaneval

        found, items, written = score_humaneval(writer, params.humaneval, params.seed, without_isolation)
        scores, frames, answers = [*scores, *found], [*frames, items], [*answers, *written]
    if params.gsm8k is not None:
        from bitdistiller.reasoning.gsm8k import score_gsm8k

        found, items, written = score_gsm8k(writer, params.gsm8k, params.seed)
        scores, frames, answers = [*scores, *found], [*frames, items], [*answers, *written]
    if params.mmlu is not None:
        from bitdistiller.reasoning.mmlu import score_mmlu

        found, items = score_mmlu(writer.model, writer.tokenizer, params.mmlu, params.batch_tokens, params.seed)
        scores, frames = [*scores, *found], [*frames, items]
    return scores, pd.concat(frames, ignore_index=True), answers


def _write_answers(answers: list[Answer], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(answer)) + "\n" for answer in answers))
