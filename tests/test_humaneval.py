"""HumanEval as programs: every reference solution passes, none of the empty ones does; completions, answers, pass@k."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitdistiller.errors import UserError
from bitdistiller.sandbox import run_many
from bitdistiller.sandbox.humaneval import STOP_WORDS, code_of, cut, pass_at_k, problems
from tests.isolation import needs_isolation

PROBLEMS = problems()


@needs_isolation
def test_all_reference_solutions_pass():
    assert len(PROBLEMS) == 164
    outcomes = run_many([problem.program(problem.solution) for problem in PROBLEMS])
    assert [(p.name, o) for p, o in zip(PROBLEMS, outcomes, strict=True) if not o.passed] == []


@needs_isolation
def test_no_empty_function_passes():
    outcomes = run_many([problem.program("    pass\n") for problem in PROBLEMS[::4]])
    assert {outcome.verdict for outcome in outcomes} == {"failed", "error"}


@needs_isolation
def test_the_whole_function_as_a_chat_model_answers_passes():
    chosen = [problem for problem in PROBLEMS if problem.helpers.count("def ")] + PROBLEMS[::20]
    assert len(chosen) > 10
    answers = [f"Here it is:\n```python\n{p.prompt[len(p.helpers) :]}{p.solution}```\nEnjoy!" for p in chosen]
    outcomes = run_many([p.answer(text) for p, text in zip(chosen, answers, strict=True)])
    assert {outcome.verdict for outcome in outcomes} == {"passed"}


@needs_isolation
def test_a_program_cannot_pass_by_replacing_the_helpers_of_its_tests():
    (problem,) = [problem for problem in PROBLEMS if problem.name == "HumanEval/32"]
    outcomes = run_many([
        (f"def poly(xs, x): return 0\ndef {problem.entry_point}(xs): return 0", problem.tests),
        (f"class Root(float):\n    __mul__ = __rmul__ = __pow__ = lambda *_: 0\n"
         f"def {problem.entry_point}(xs): return Root()", problem.tests),
    ])  # fmt: skip
    assert [outcome.verdict for outcome in outcomes] == ["failed", "failed"]


@pytest.mark.parametrize("word", STOP_WORDS)
def test_a_completion_ends_at_each_stop_word(word):
    assert cut(f"    return 1{word} and more{word}") == "    return 1"


def test_a_completion_ends_at_the_first_of_several_stop_words():
    assert cut("    x = 1\n    return x\nprint(x)\ndef g():\n    pass") == "    x = 1\n    return x"
    assert cut("    return 1\n") == "    return 1\n"
    assert cut("") == ""


def test_no_reference_solution_is_cut():
    assert [problem.name for problem in PROBLEMS if cut(problem.solution) != problem.solution] == []


@pytest.mark.parametrize("answer, code", [
    ("```python\nx = 1\n```", "x = 1\n"),
    ("```\nx = 1\n```\n```\ny = 2\n```", "x = 1\n"),
    ("```py\nx = 1", "x = 1"),
    ("x = 1", "x = 1"),
])  # fmt: skip
def test_code_of_an_answer(answer, code):
    assert code_of(answer) == code


@given(samples=st.integers(1, 60), data=st.data())
def test_pass_at_k_equals_the_fraction_of_subsets_with_a_passing_sample(samples, data):
    passed, k = data.draw(st.integers(0, samples)), data.draw(st.integers(1, samples))
    exact = 1 - math.comb(samples - passed, k) / math.comb(samples, k)
    assert pass_at_k(samples, passed, k) == pytest.approx(exact, abs=1e-12)


def test_pass_at_k_needs_k_samples():
    with pytest.raises(UserError, match="pass@5 cannot be estimated from 4 samples"):
        pass_at_k(4, 2, 5)
