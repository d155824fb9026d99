"""How likely a model finds the right solution: bits per byte of text that people wrote.

A model that solves nothing scores 0 on a benchmark of written answers, whatever it knows; how many bits it needs for
the gold solution still separates it from a worse one. Bits are per byte and not per token, so that tokenizers compare.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from lm_eval.api.instance import Instance

from bitdistiller.evaluate.perplexity import ratio_score
from bitdistiller.evaluate.shared_context import SharedContextLM
from bitdistiller.results import ITEM_COLUMNS, Score

METRIC = "bits_per_byte"


def bits_per_byte(
    judge: SharedContextLM, task: str, solutions: Mapping[str, tuple[str, str]], seed: int
) -> tuple[Score, pd.DataFrame]:
    """Bits a byte of gold solutions after their prompts: the score, and item rows.

    Args:
        solutions: item -> (prompt, gold solution). White space at the end of a prompt belongs to the solution, as
            tokens join it to the word that follows; lm-eval moves it, and its bytes count.
    """
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(solutions.values())]
    answers = judge.loglikelihood(requests, disable_tqdm=True)
    rows = []
    for (item, (prompt, solution)), (log_likelihood, _) in zip(solutions.items(), answers, strict=True):
        scored = prompt[len(prompt.rstrip()) :] + solution
        rows.append((task, item, METRIC, -log_likelihood / np.log(2), float(len(scored.encode()))))
    items = pd.DataFrame(rows, columns=ITEM_COLUMNS)
    return ratio_score(task, METRIC, items[["value", "weight"]].to_numpy(), seed), items
