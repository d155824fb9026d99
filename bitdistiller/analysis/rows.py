"""Rows of a study's tidy table, as every study needs them: each run, each condition over its seeds, each paper.

Two retentions stand beside accuracy, because the plain one flatters: a model that guesses keeps 66 % of a full
precision of 53 % where guessing earns 35 %. ``retention`` is score / full, as the follow-up gives it;
``retention_above_chance`` is (score - chance) / (full - chance), about zero for a model that guesses.

``worst_share`` stands beside perplexity: the part of its logarithm that the worst 1 % of tokens make. At very few bits
a handful of tokens can be all of it.
"""

from collections.abc import Callable, Mapping, Sequence
from math import exp

import pandas as pd

from bitdistiller.analysis.published import CHANCE, chance_of
from bitdistiller.analysis.record import Row
from bitdistiller.analysis.stats import (
    PERPLEXITY_ITEMS,
    Estimate,
    accuracy,
    flips,
    log_perplexity,
    own_weights,
    panel,
    per_token,
    retention,
)
from bitdistiller.analysis.study import Results

MEAN = "mean"
WEIGHTS = "weights"  # the task of what is measured on weights


def comparison_table(*published: Callable[[Results], list[dict]]) -> Callable[[Results], pd.DataFrame]:
    """A study's table of all its conditions in the order of its parameters, with rows of published numbers after them.

    Args:
        published: functions that give such rows.
    """

    def table(results: Results) -> pd.DataFrame:
        rows = measured_rows(results, dict.fromkeys(results.params.conditions()))
        return frame([*rows, *(row for rows_of in published for row in rows_of(results))])

    return table


def frame(rows: Sequence[dict]) -> pd.DataFrame:
    """Rows as the tidy table, absent cells empty."""
    return pd.DataFrame(rows, columns=list(Row.model_fields))


def measured_rows(results: Results, levels: Mapping[str, float | None]) -> list[dict]:
    """Every score of every run, then every condition's means over seeds.

    Args:
        levels: condition -> its place on a numeric axis.
    """
    rows = [row for condition, level in levels.items() for row in _run_rows(results, condition, level)]
    for condition, level in levels.items():
        rows += _mean_rows(results, condition, level)
    return rows


def _run_rows(results: Results, condition: str, level: float | None) -> list[dict]:
    rows = []
    for result in results.of(condition):
        common = {
            "kind": "run",
            "source": "measured",
            "model": result.scores.model,
            "condition": condition,
            "level": level,
            "run": result.scores.run,
            "seeds": 1,
        }
        rows += [common | score.model_dump(exclude={"chance"}) for score in result.scores.scores]
        rows += [common | row for row in _average_rows(result.scores.scores)]
    return rows


def _average_rows(scores: Sequence) -> list[dict]:
    """Unweighted means over tasks of one run's accuracies."""
    rows = []
    for metric in ("acc", "acc_norm"):
        chosen = [score for score in scores if score.metric == metric]
        if chosen:
            error = sum(score.standard_error**2 for score in chosen) ** 0.5 / len(chosen)
            value = sum(score.value for score in chosen) / len(chosen)
            rows.append(
                {
                    "task": MEAN,
                    "metric": metric,
                    "value": value,
                    "standard_error": error,
                    "n": sum(score.n for score in chosen),
                }
            )
    return rows


def _mean_rows(results: Results, condition: str, level: float | None) -> list[dict]:
    perplexity, full = results.perplexity_task, results.full_of(condition)
    models = sorted({result.scores.model for result in results.of(condition)})
    common = {"kind": "mean", "source": "measured", "model": ", ".join(models), "condition": condition, "level": level}
    log_ppl = log_perplexity([results.panel(condition, PERPLEXITY_ITEMS, [perplexity])], [1])
    rows = [common | _exp_row(log_ppl, perplexity)]
    rows += [common | row for row in _worst_share_rows(results, condition, perplexity)]
    tasks = sorted(results.chance)
    by_task = {task: accuracy([results.panel(condition, "acc", [task])], [1]) for task in tasks}
    rows += [common | estimate_row(estimate, task, "acc") for task, estimate in by_task.items()]
    student, reference = results.panel(condition, "acc", tasks), results.panel(full, "acc", tasks)
    rows.append(common | estimate_row(accuracy([student], [1]), MEAN, "acc"))
    chance = sum(results.chance.values()) / len(tasks)
    for metric, level_zero in (("retention", 0.0), ("retention_above_chance", chance)):
        estimate = retention(student, reference, level_zero)
        if estimate is not None:
            rows.append(common | estimate_row(estimate, MEAN, metric))
    if condition != full and results.of(full)[0].scores.run not in results.params.conditions()[condition]:
        rows += [common | row for row in _direct_rows(results, condition, full, perplexity, tasks)]
    return rows


def _worst_share_rows(results: Results, condition: str, perplexity: str) -> list[dict]:
    """How much of the perplexity a few tokens make; none where the runs were scored without it."""
    runs = results.of(condition)
    if any(all(score.metric != "worst_share" for score in run.scores.scores) for run in runs):
        return []
    share = own_weights([panel([run.items], "worst_share", [perplexity]) for run in runs])
    return [estimate_row(share, perplexity, "worst_share")]


def _direct_rows(results: Results, condition: str, full: str, perplexity: str, tasks: list[str]) -> list[dict]:
    """How far a condition is from its full-precision original, item by item and weight by weight."""
    rows = [
        estimate_row(per_token([results.panel(condition, metric, [perplexity])], [1]), perplexity, metric)
        for metric in ("kl", "agreement")
    ]
    changed = flips(results.panel(condition, "choice", tasks), results.panel(full, "choice", tasks))
    rows.append(estimate_row(changed, MEAN, "flips"))
    summaries = [result.scores.weights for result in results.of(condition) if result.scores.weights]
    for metric in ("zeros", "entropy", "error") if summaries else ():
        value = sum(getattr(summary, metric) for summary in summaries) / len(summaries)
        rows.append({"task": WEIGHTS, "metric": metric, "value": value, "seeds": len(summaries)})
    return rows


def estimate_row(estimate: Estimate, task: str, metric: str) -> dict:
    """The number columns of an estimate."""
    return {
        "task": task,
        "metric": metric,
        "value": estimate.value,
        "standard_error": estimate.standard_error,
        "low": estimate.low,
        "high": estimate.high,
        "n": estimate.n,
        "seeds": estimate.seeds,
    }


def _exp_row(estimate: Estimate, task: str) -> dict:
    value = exp(estimate.value)
    bounds = {
        "value": value,
        "standard_error": value * estimate.standard_error,
        "low": exp(estimate.low),
        "high": exp(estimate.high),
    }
    return estimate_row(estimate, task, "perplexity") | bounds


def published_rows(
    table: pd.DataFrame, file: str, average: str, conditions: Mapping[str, str], levels: Mapping[str, float | None]
) -> list[dict]:
    """A published table of perplexity and task accuracies against bits, with retention computed from its averages.

    Args:
        table: ``read_published(folder, file)``, perhaps filtered: columns ``model, bits, ppl``, tasks of ``CHANCE``
            (``*_se`` beside) and ``average``, the printed mean of the task columns.
        conditions: printed ``bits`` -> condition; rows of other bits are left out.
        levels: condition -> its place on a numeric axis.
    """
    tasks = [column for column in table if column in CHANCE]
    chance, rows = chance_of(tasks), []
    full = table[table["bits"] == "16"].set_index("model")[average]
    for line in table[table["bits"].isin(list(conditions))].to_dict("records"):
        condition = conditions[line["bits"]]
        common = {
            "kind": "published",
            "source": file,
            "model": line["model"],
            "condition": condition,
            "level": levels[condition],
        }
        cells = [("wikitext-2", "perplexity", line["ppl"], None)]
        cells += [(task, "acc", line[task] / 100, line.get(f"{task}_se", float("nan")) / 100) for task in tasks]
        score, base = line[average], full[line["model"]]
        cells += [
            (MEAN, "acc", score / 100, None),
            (MEAN, "retention", score / base, None),
            (MEAN, "retention_above_chance", (score - 100 * chance) / (base - 100 * chance), None),
        ]
        rows += [
            common | {"task": task, "metric": metric, "value": value, "standard_error": error}
            for task, metric, value, error in cells
            if pd.notna(value)
        ]
    return rows
