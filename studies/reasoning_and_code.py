"""What low bits do to knowledge, reasoning and code: MMLU, GSM8K and HumanEval at full precision, 3 and 2 bits.

BitDistiller's second half asks this of models made for mathematics and code. A model of 135 million parameters solves
next to none of such tasks, so two kinds of numbers stand side by side. *Scores* count solved items; where full
precision itself solves so few that losing all of them would be no finding (fewer than six, by an exact test), or
answers no better than by guessing, there is nothing to lose, and the comparison is undecided. *Likelihoods* are bits a
byte of solutions that people wrote: they go on telling models apart where scores no longer do.

*solves-more-than-rounding* and *likelier-than-rounding* are the same claim in these two currencies: at 2 bits a student
of BitDistiller keeps more than weights that are only rounded. *loses-more-than-text* asks whether low bits cost more on
solutions than on running text: the factor by which bits a byte grow on gold solutions, over the factor by which nats a
token grow on held-out text, for BitDistiller's student at 2 bits.

The papers' students were trained on mathematics or code; which text ours were trained on is a parameter of their runs
(``training_text``), and stands on their pages.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pandas as pd

from bitdistiller.analysis.compare import Measure, Quantity, above, all_of, below
from bitdistiller.analysis.power import Design
from bitdistiller.analysis.published import BITDISTILLER, read_published
from bitdistiller.analysis.record import StudyReport
from bitdistiller.analysis.rows import estimate_row, frame, measured_rows
from bitdistiller.analysis.stats import PERPLEXITY_ITEMS, accuracy, apart, difference_p, log_ratio, per_token, wilson
from bitdistiller.analysis.study import ComparedRuns, Results
from bitdistiller.analysis.verdict import Claim, Finding, PublishedNumber, undefined

if TYPE_CHECKING:
    from bitdistiller.report.drawing import Drawing

QUESTION = "What do low bits cost in knowledge, reasoning and code?"
SOURCE = f"{BITDISTILLER}, its main table (MMLU) and its table of reasoning (GSM8K, HumanEval)"
TABLE, MAIN_TABLE = "bitdistiller_reasoning.csv", "bitdistiller_llama2.csv"

FULL, OURS, ROUNDED = "full precision", "BitDistiller", "RTN"
METHODS = (OURS, ROUNDED)
BITS = "bits_per_byte"
SCORES = {"mmlu": "acc", "gsm8k": "exact_match_flexible", "humaneval": "pass_at_1"}
SOLUTIONS = ("gsm8k", "humaneval")
CHANCE = {"mmlu": 0.25}
TOO_FEW = 6  # items solved of which losing all has an exact two-sided p of 2 x 0.5^6 = .03; of five, .06


def label(method: str, bits: int) -> str:
    """Condition of a method and a width."""
    return f"{method}, {bits} bits"


class Params(ComparedRuns):
    """Students and rounded weights, all scored under ``reasoning``; other widths are shown where they are listed."""

    reasoning: ClassVar[bool] = True
    required = (label(ROUNDED, 2), label(OURS, 2))


def score_difference(task: str, condition: str, minus: str) -> Measure:
    """Solved share of a condition minus that of another; not defined where full precision is at the floor."""

    def measure(results: Results) -> Quantity | Finding:
        name = f"{SCORES[task]} on {task} of {condition} minus {minus}"
        first, second = (results.panel(label, SCORES[task], [task]) for label in (condition, minus))
        if at_floor(results, task):
            found = undefined(f"{name} (full precision is at the floor)", "points", len(first.keys), first.seeds)
            return found.model_copy(update={"needs": f"a model that is above the floor on {task}"})
        return Quantity(name, accuracy([first, second], [1, -1]), "points", difference_p(first, second))

    return measure


def at_floor(results: Results, task: str) -> bool:
    """Whether full precision answers no better than by guessing, or solves too few items for a loss to be seen."""
    full = results.panel(results.full_of(label(OURS, 2)), SCORES[task], [task])
    if task in CHANCE:
        return accuracy([full], [1]).low <= CHANCE[task]
    return full.values.mean(axis=0).sum() < TOO_FEW


def bits_ratio(task: str, condition: str, over: str) -> Measure:
    """Bits a byte of gold solutions by a condition over those by another."""

    def measure(results: Results) -> Quantity:
        ratio = log_ratio(*(results.panel(label, BITS, [task]) for label in (condition, over)))
        return Quantity(f"bits a byte of {task} solutions, {condition} over {over}", ratio, "times", ratio.p_value())

    return measure


def growth_over_text(task: str, condition: str) -> Measure:
    """How much more bits grow on gold solutions than on held-out text, as a ratio of factors."""

    def measure(results: Results) -> Quantity:
        full, text = results.full_of(condition), results.perplexity_task
        on_solutions = log_ratio(*(results.panel(label, BITS, [task]) for label in (condition, full)))
        on_text = log_ratio(*(results.panel(label, PERPLEXITY_ITEMS, [text]) for label in (condition, full)))
        excess = apart(on_solutions, on_text)
        name = f"growth of bits on {task} solutions over their growth on {text} text, {condition}"
        return Quantity(name, excess, "times", excess.p_value())

    return measure


def table(results: Results) -> pd.DataFrame:
    """Perplexity and 0-shot accuracies, the three benchmarks, MMLU's subjects, and the published scores."""
    rows = measured_rows(results, dict.fromkeys(results.params.conditions()))
    return frame([*rows, *_benchmarks(results), *_subjects(results), *_printed(results.published)])


def _benchmarks(results: Results) -> Iterator[dict]:
    """Each score of each run; and of each condition, which is that score if it has one seed."""
    for condition in results.params.conditions():
        runs = results.of(condition)
        common = {"source": "measured", "model": runs[0].scores.model, "condition": condition}
        for result in runs:
            for score in result.reasoning.scores:
                row = common | score.model_dump(exclude={"chance"}) | {"seeds": 1}
                yield row | {"kind": "run", "run": result.scores.run}
                if len(runs) == 1:
                    yield row | {"kind": "mean"}
        for score in runs[0].reasoning.scores if len(runs) > 1 else ():
            panel = results.panel(condition, score.metric, [score.task])
            yield common | {"kind": "mean"} | estimate_row(per_token([panel], [1]), score.task, score.metric)


def _subjects(results: Results) -> Iterator[dict]:
    """Accuracy on each category of MMLU and on each of its subjects; an item is called category/subject/number."""
    for condition in results.params.conditions():
        panel = results.panel(condition, SCORES["mmlu"], ["mmlu"])
        right = pd.DataFrame({"right": panel.values.mean(axis=0) / panel.weights}, index=panel.keys)
        places = right.index.get_level_values("item").str.split("/")
        common = {"kind": "mean", "source": "measured", "model": results.of(condition)[0].scores.model}
        for part in (places.str[:1], places.str[:2]):
            for name, of_part in right.groupby(part.str.join("/"))["right"]:
                value, n = of_part.mean(), len(of_part)
                low, high = wilson(round(value * n), n)
                numbers = {"value": value, "low": low, "high": high, "n": n, "seeds": panel.seeds}
                error = {"standard_error": (value * (1 - value) / n) ** 0.5}
                where = {"condition": condition, "task": f"mmlu/{name}", "metric": SCORES["mmlu"]}
                yield common | where | numbers | error


_COLUMNS = {"humaneval_wizardcoder": ("humaneval", "WizardCoder"), "gsm8k_metamath": ("gsm8k", "MetaMath")}


def _columns(printed: pd.DataFrame) -> Iterator[tuple[str, str, str]]:
    """(column, task, model) of every printed score."""
    for column in printed:
        stem, _, size = column.rpartition("_")
        if stem in _COLUMNS:
            task, family = _COLUMNS[stem]
            yield column, task, f"{family} {size.upper()}"


def _scores(folder: Path) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    """(file, task, model, its lines with their score in percent) of every printed model."""
    main, reasoning = read_published(folder, MAIN_TABLE), read_published(folder, TABLE)
    for model, lines in main.groupby("model", sort=False):
        yield MAIN_TABLE, "mmlu", model, lines.assign(score=lines["mmlu_5shot"])
    for column, task, model in _columns(reasoning):
        yield TABLE, task, model, reasoning.assign(score=reasoning[column])


def _printed(folder: Path) -> Iterator[dict]:
    for file, task, model, lines in _scores(folder):
        for line in lines[lines["method"].isin(METHODS) | (lines["bits"] == "16")].to_dict("records"):
            condition = FULL if line["bits"] == "16" else label(line["method"], int(line["bits"]))
            common = {"kind": "published", "source": file, "model": model, "condition": condition}
            yield common | {"task": task, "metric": SCORES[task], "value": line["score"] / 100}


def printed_differences(folder: Path) -> list[PublishedNumber]:
    """BitDistiller minus RTN at 2 bits, for every printed model."""
    numbers = []
    for file, task, model, lines in _scores(folder):
        at_two = lines[lines["bits"] == "2"].set_index("method")["score"]
        numbers.append(
            PublishedNumber(
                model=f"{model}, {task}",
                value=at_two[OURS] - at_two[ROUNDED],
                unit="points",
                description=f"score of {OURS} minus {ROUNDED} at 2 bits",
                file=file,
            )
        )
    return numbers


def figures(report: StudyReport) -> dict[str, "Drawing"]:
    """Likelihood of solutions and scores of every condition; what the papers print of them."""
    from bitdistiller.report.figures import comparison_figures, conditions_panel

    rows = report.frame()
    panel: Callable[..., Drawing] = partial(conditions_panel, rows)
    drawings = comparison_figures(report)
    for task in SOLUTIONS:
        text = f"Bits a byte of the gold solutions of {task} with 95 % intervals: lower is better."
        drawings[f"{task}-bits"] = panel(BITS, task, f"bits a byte, {task} solutions", text)
    for task, metric in SCORES.items():
        text = f"Share of {task} items that are solved, with 95 % intervals."
        if task in CHANCE:
            text = text.removesuffix(".") + "; the dashed line is chance."
        drawings[task] = panel(metric, task, f"solved, {task}", text, chance=CHANCE.get(task))
        text = f"Share of {task} items that are solved as the paper prints it: other, larger models."
        drawings[f"{task}-published"] = panel(metric, task, f"solved, {task}", text, kind="published")
    return drawings


DESIGN = Design(disagreement=0.1, spread=0.1)
CLAIMS = (
    Claim(
        id="solves-more-than-rounding",
        sentence="At 2 bits BitDistiller solves more of MMLU, GSM8K and HumanEval than rounding.",
        source=SOURCE,
        published=printed_differences,
        test=all_of(*(above(score_difference(task, label(OURS, 2), label(ROUNDED, 2)), 0) for task in SCORES)),
    ),
    Claim(
        id="likelier-than-rounding",
        sentence="At 2 bits BitDistiller finds gold solutions of GSM8K and HumanEval likelier than rounding does.",
        source=SOURCE,
        test=all_of(*(below(bits_ratio(task, label(OURS, 2), label(ROUNDED, 2)), 1) for task in SOLUTIONS)),
    ),
    Claim(
        id="loses-more-than-text",
        sentence="Two bits cost BitDistiller's student more on solutions of GSM8K and HumanEval than on running text.",
        source=SOURCE,
        test=all_of(*(above(growth_over_text(task, label(OURS, 2)), 1) for task in SOLUTIONS)),
    ),
)
