"""What a model wrote for each item, and how shares of items become scores.

An item counts with the mean over the samples that were written for it. With one sample that is right or wrong, and the
interval is Wilson's, which does not shrink to nothing where a model solves nothing; else items are resampled.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from bitdistiller.evaluate.perplexity import ratio_score
from bitdistiller.results import ITEM_COLUMNS, Score


@dataclass(frozen=True)
class Answer:
    """One sample of an item, for people to read: ``verdict`` says what became of it."""

    task: str
    item: str
    sample: int
    text: str
    verdict: str


def item_rows(task: str, metric: str, values: Mapping[str, float]) -> pd.DataFrame:
    """Item rows of weight 1 (see ``bitdistiller.results``)."""
    return pd.DataFrame(
        [(task, item, metric, float(value), 1.0) for item, value in values.items()], columns=ITEM_COLUMNS
    )


def share_score(task: str, metric: str, values: Mapping[str, float], seed: int) -> Score:
    """The mean of what items count, each between 0 and 1, with a 95 % interval. Nothing is right by chance."""
    column = np.array(list(values.values()), float)
    if not set(column) <= {0.0, 1.0}:
        return ratio_score(task, metric, np.stack([column, np.ones_like(column)], axis=1), seed)
    interval = binomtest(round(column.sum()), len(column)).proportion_ci(confidence_level=0.95, method="wilson")
    return Score(
        task=task,
        metric=metric,
        value=column.mean(),
        standard_error=column.std(ddof=1) / len(column) ** 0.5,
        low=interval.low,
        high=interval.high,
        n=len(column),
        chance=0.0,
    )
