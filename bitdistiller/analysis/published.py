"""The papers' own numbers, read from ``reports/published``.

They were copied by hand, as printed, one CSV a table; the README beside them says where each stands and what does
not add up in print. They belong to other models, other data and other machines than ours, so they are compared with
ours in direction and in ratios, never in absolute terms. Accuracies there are percentages; here they become shares.
"""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from bitdistiller.errors import UserError

FOLLOW_UP = "Knowledge Distillation for Efficient Training of Quantized LLMs"
BITDISTILLER = "BitDistiller (arXiv 2402.10631)"

# The score of guessing uniformly among the answers of each column's task.
CHANCE = {
    "piqa": 1 / 2,
    "hellaswag": 1 / 4,
    "winogrande": 1 / 2,
    "arc_challenge": 1 / 4,
    "arc_easy": 1 / 4,
    "mmlu_5shot": 1 / 4,
}


def read_published(folder: Path, file: str) -> pd.DataFrame:
    """One published table as printed; empty cells are NaN and ``bits`` is text (it may be ``random``).

    Raises:
        UserError: there is no such file; the error lists those there are.
    """
    path = folder / file
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in folder.glob("*.csv"))) or "no CSV files"
        raise UserError(f"{path} does not exist; the folder has {there}")
    return pd.read_csv(path, dtype={"bits": str})


def chance_of(columns: Iterable[str]) -> float:
    """Chance level of an average over task columns."""
    levels = [CHANCE[column] for column in columns]
    return sum(levels) / len(levels)


def paper_of(file: str) -> str:
    """Short name of the paper that a file's numbers come from."""
    return "follow-up" if file.startswith("followup") else "BitDistiller"
