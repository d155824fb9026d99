"""A model -> perplexity and task accuracy, each with per-item results.

Nothing here knows which scale it serves: texts, tasks and limits are names and numbers in the parameters.
"""

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitdistiller.config import EvaluationParams
from bitdistiller.errors import UserError
from bitdistiller.evaluate.local import held_out_text
from bitdistiller.evaluate.perplexity import document_scores, scores_of_documents
from bitdistiller.results import Score


def evaluate_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    params: EvaluationParams,
    original: PreTrainedModel | None = None,
) -> tuple[list[Score], pd.DataFrame]:
    """All scores of a model and the item rows behind them (columns ``bitdistiller.results.ITEM_COLUMNS``).

    Models move to the GPU if there is one. Names under ``params.perplexity`` become task names. On those texts the
    model is also compared with ``original``, the full-precision model that it comes from, where one is given.

    Raises:
        UserError: a text or task that does not exist or cannot be scored, or an original with another vocabulary.
    """
    if both := set(params.perplexity) & set(params.tasks):
        raise UserError(f"evaluation: {', '.join(sorted(both))} names a text and a task; names must differ")
    if torch.cuda.is_available():
        model.cuda()
        if original is not None:
            original.cuda()
    scores, frames = [], []
    for name, text in params.perplexity.items():
        documents = held_out_text(text.text)
        items = document_scores(
            model, tokenizer, documents, text.window, text.max_tokens, params.batch_tokens, name, original
        )
        scores += scores_of_documents(items, name, params.seed)
        frames.append(items)
    if params.tasks:
        from bitdistiller.evaluate.tasks import score_tasks  # lm-eval takes seconds to import

        found, items = score_tasks(model, tokenizer, params.tasks, params.batch_tokens, params.seed)
        scores += found
        frames.append(items)
    return scores, pd.concat(frames, ignore_index=True)
