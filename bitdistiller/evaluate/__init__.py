"""A model -> perplexity and task accuracy, each with per-item results.

Nothing here knows which scale it serves: texts, tasks and limits are names and numbers in the parameters.
"""

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitdistiller.config import EvaluationParams
from bitdistiller.errors import UserError
from bitdistiller.evaluate.local import held_out_text
from bitdistiller.evaluate.perplexity import document_nll, perplexity_score
from bitdistiller.results import Score


def evaluate_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, params: EvaluationParams
) -> tuple[list[Score], pd.DataFrame]:
    """All scores of a model and the item rows behind them (columns ``bitdistiller.results.ITEM_COLUMNS``).

    The model moves to the GPU if there is one. Names under ``params.perplexity`` become task names.

    Raises:
        UserError: a text or task that does not exist or cannot be scored.
    """
    if both := set(params.perplexity) & set(params.tasks):
        raise UserError(f"evaluation: {', '.join(sorted(both))} names a text and a task; names must differ")
    if torch.cuda.is_available():
        model.cuda()
    scores, frames = [], []
    for name, text in params.perplexity.items():
        documents = held_out_text(text.text)
        items = document_nll(model, tokenizer, documents, text.window, text.max_tokens, params.batch_tokens, name)
        scores.append(perplexity_score(items, name, params.seed))
        frames.append(items)
    if params.tasks:
        from bitdistiller.evaluate.tasks import score_tasks  # lm-eval takes seconds to import

        found, items = score_tasks(model, tokenizer, params.tasks, params.batch_tokens, params.seed)
        scores += found
        frames.append(items)
    return scores, pd.concat(frames, ignore_index=True)
