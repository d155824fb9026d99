"""How much text there is to read: items of benchmarks in characters, and characters in a token.

Before a benchmark is tokenised its length is a mean over its items, which ``tests/test_plan.py`` compares with the
data. A vocabulary twice as large makes tokens longer by about the same amount each time: measured on held-out
Wikipedia passages with the tokenizer of the micro models (4,096 entries) and SmolLM2's (49,152).
"""

import math
from dataclasses import dataclass

SUBJECTS = 57  # of MMLU
MMLU_ITEMS = 14042


@dataclass(frozen=True)
class Items:
    """A multiple-choice benchmark: how many items, contexts and choices of each, and their mean characters."""

    count: int
    contexts: int
    context: float
    choices: int
    choice: float

    @property
    def characters(self) -> float:
        """Characters of an item that a model reads: contexts once, choices after each."""
        return self.contexts * (self.context + self.choices * self.choice)

    @property
    def scored(self) -> float:
        """Characters that are predicted."""
        return self.contexts * self.choices * self.choice


BENCHMARKS = {
    "piqa": Items(1838, 1, 54.1, 2, 99.2),
    "hellaswag": Items(10042, 1, 243.0, 4, 141.9),
    "winogrande": Items(1267, 2, 80.9, 1, 24.8),
    "arc_easy": Items(2376, 1, 131.6, 4, 23.6),
    "arc_challenge": Items(1172, 1, 149.6, 4, 30.1),
    "continuation": Items(744, 1, 229.0, 4, 91.6),
    "beginning": Items(744, 4, 228.8, 1, 91.7),
}
UNKNOWN = Items(2000, 1, 200, 4, 50)  # a task of lm-eval that is not among them
MMLU = Items(MMLU_ITEMS, 1, 390, 4, 1)
MMLU_SHOT = 430  # characters of an example before an item: 2,150 for five
GSM8K, GSM8K_EXAMPLES, GSM8K_QUESTION = 1319, 3300, 240
HUMANEVAL, HUMANEVAL_PROMPT = 164, 450
# Characters of the splits of text sets: train, validation, test.
TEXTS = {
    "wikipedia": (1_396_287, 80_023, 167_181),
    "books": (1_399_733, 84_763, 170_926),
    "stories": (633_494, 35_267, 79_331),
    "encyclopedia": (519_076, 23_123, 58_019),
    "web": (568_659, 32_212, 63_895),
    "wikitext-2": (10_929_707, 1_144_610, 1_290_590),
}
SPLITS = ("train", "validation", "test")

_SMALL, _SMALL_TOKEN, _LARGE, _LARGE_TOKEN = 4096, 3.38, 49152, 4.37


def token_characters(vocabulary: int) -> float:
    """Mean characters of a token of English."""
    slope = (_LARGE_TOKEN - _SMALL_TOKEN) / math.log2(_LARGE / _SMALL)
    return max(1.0, _SMALL_TOKEN + slope * math.log2(vocabulary / _SMALL))


def text_characters(names: list[str], split: str) -> float:
    """Characters of text sets together; infinite if one of them is not known."""
    place = SPLITS.index(split)
    return sum(TEXTS[name][place] if name in TEXTS else math.inf for name in names)
