"""Two sets of results of the same runs: what differs beyond noise.

For every score that both have, the difference is B minus A (of perplexities: B over A) with its 95 % interval. Where
both kept per-item results of the same items, it is paired: exact McNemar test for accuracy, bootstrap over documents
for perplexity, KL and agreement (``stats``). Where the items differ or were not kept, the two standard errors are
added up as for independent samples, which is wide. All p-values are corrected together (Holm): with hundreds of
scores, one in twenty would else differ by chance. Runs of a name are one seed each, so a difference beyond noise means
that these two trained models differ on these items; another seed might as well.

Costs are measured once and have no interval. Times are compared in sum, and a change is told from 10 % on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bitdistiller.analysis.snapshot import CostExcerpt, RunSnapshot, ScoreExcerpt, Snapshot, VerdictExcerpt
from bitdistiller.analysis.stats import (
    ALPHA,
    PERPLEXITY_ITEMS,
    Estimate,
    Panel,
    accuracy,
    difference_p,
    holm,
    log_perplexity,
    log_ratio,
    panel,
    per_token,
)
from bitdistiller.analysis.verdict import Unit, printed

COST_CHANGE = 0.1
_UNITS: dict[str, Unit] = {"perplexity": "times", "bits_per_byte": "times", "kl": "nats"}
_OF_DOCUMENTS = ("perplexity", "bits_per_byte", "kl", "agreement", "acc_by_size")  # sums over weights


@dataclass(frozen=True)
class ScoreDifference:
    """One score in A and in B; ``effect`` and its bounds are B against A in ``unit``; ``p`` is Holm-adjusted."""

    run: str
    task: str
    metric: str
    before: float
    after: float
    unit: Unit
    effect: float
    low: float
    high: float
    p: float
    paired: bool

    @property
    def same(self) -> bool:
        return self.before == self.after

    @property
    def beyond_noise(self) -> bool:
        return self.p <= ALPHA


@dataclass(frozen=True)
class CostDifference:
    """One cost of runs that both have: seconds in sum, or the largest peak in bytes."""

    stage: str
    unit: str
    before: float
    after: float

    @property
    def change(self) -> float:
        """Relative change."""
        return self.after / self.before - 1 if self.before else math.inf

    @property
    def changed(self) -> bool:
        return abs(self.change) >= COST_CHANGE


@dataclass(frozen=True)
class Changed:
    """A value that is not the same in A and B, and what it belongs to; None where one of them has none."""

    name: str
    before: str | float | None
    after: str | float | None
    where: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """Everything that two sets of results have in common or not."""

    names: tuple[str, str]
    runs: list[str]
    only: tuple[list[str], list[str]]
    scores: list[ScoreDifference]
    lacking: list[Changed]
    verdicts: dict[str, tuple[VerdictExcerpt, VerdictExcerpt]]
    only_verdicts: tuple[list[str], list[str]]
    parameters: list[Changed]
    costs: list[CostDifference]
    machines: tuple[list[str], list[str]]

    @property
    def changed_verdicts(self) -> dict[str, tuple[VerdictExcerpt, VerdictExcerpt]]:
        """Verdicts of another outcome."""
        return {name: pair for name, pair in self.verdicts.items() if pair[0].outcome != pair[1].outcome}

    @property
    def equal(self) -> bool:
        """The same runs, scores and verdicts, with the same numbers and parameters."""
        same_verdicts = all(before == after for before, after in self.verdicts.values())
        same_scores = all(score.same for score in self.scores) and not self.lacking
        return same_scores and same_verdicts and not any((*self.only, *self.only_verdicts, self.parameters))


def compare_results(before: Snapshot, after: Snapshot) -> Difference:
    """Put two snapshots side by side, run by run of the same name."""
    runs = [name for name in before.runs if name in after.runs]
    pairs = [(name, before.runs[name], after.runs[name]) for name in runs]
    return Difference(
        names=(before.name, after.name),
        runs=runs,
        only=(_without(before.runs, after.runs), _without(after.runs, before.runs)),
        scores=_corrected([score for name, a, b in pairs for score in _scores(name, a, b)]),
        lacking=[change for name, a, b in pairs for change in _lacking(name, a, b)],
        verdicts={
            name: (verdict, after.verdicts[name]) for name, verdict in before.verdicts.items() if name in after.verdicts
        },
        only_verdicts=(_without(before.verdicts, after.verdicts), _without(after.verdicts, before.verdicts)),
        parameters=_parameters(pairs),
        costs=_costs(pairs),
        machines=tuple(sorted({side.runs[name].machine for name in runs}) for side in (before, after)),
    )


def _without(names: Mapping, others: Mapping) -> list[str]:
    return [name for name in names if name not in others]


def _scores(run: str, before: RunSnapshot, after: RunSnapshot) -> list[ScoreDifference]:
    differences = []
    for key in before.scores:
        if key not in after.scores:
            continue
        a, b = before.scores[key], after.scores[key]
        panels = _panels(before, after, a)
        estimate, p = _paired(a.metric, *panels) if panels else _independent(a, b)
        unit = _UNITS.get(a.metric, "points")
        low, effect, high = (printed(value, unit) for value in (estimate.low, estimate.value, estimate.high))
        differences.append(
            ScoreDifference(run, a.task, a.metric, a.value, b.value, unit, effect, low, high, p, panels is not None)
        )
    return differences


def _panels(before: RunSnapshot, after: RunSnapshot, score: ScoreExcerpt) -> tuple[Panel, Panel] | None:
    """Per-item results behind a score on both sides; None if they are not of the same items and tokens."""
    metric = PERPLEXITY_ITEMS if score.metric == "perplexity" else score.metric
    if score.metric not in _OF_DOCUMENTS and not _is_share(score.metric):
        return None
    for side in (before, after):
        if side.items is None or not ((side.items["task"] == score.task) & (side.items["metric"] == metric)).any():
            return None
    a, b = (panel([side.items], metric, [score.task]) for side in (before, after))
    same = a.keys.equals(b.keys) and np.array_equal(a.weights, b.weights)
    return (a, b) if same and len(a.keys) > 1 else None


def _is_share(metric: str) -> bool:
    """Whether it is the share of items that are right."""
    return metric in ("acc", "acc_norm") or metric.startswith(("exact_match_", "pass_at_"))


def _paired(metric: str, before: Panel, after: Panel) -> tuple[Estimate, float]:
    """B minus A on the same items, and its p."""
    if _is_share(metric):
        # Equal results are equal here, and no sample of models that happen to answer alike.
        return replace(accuracy([after, before], [1, -1]), alike=0.0), difference_p(after, before)
    if metric == "bits_per_byte":
        difference = log_ratio(after, before)
    else:
        difference = (log_perplexity if metric == "perplexity" else per_token)([after, before], [1, -1])
    return difference, difference.p_value()


def _independent(before: ScoreExcerpt, after: ScoreExcerpt) -> tuple[Estimate, float]:
    """B minus A as if their items were independent samples; ratios by their logarithm."""
    if _UNITS.get(before.metric) == "times":
        value = math.log(after.value / before.value)
        errors = [side.standard_error / side.value for side in (before, after)]
    else:
        value, errors = after.value - before.value, [side.standard_error for side in (before, after)]
    df = max(before.n + after.n - 2, 1)
    estimate = Estimate(value, math.hypot(*errors), float(df), min(before.n, after.n), 1)
    return estimate, estimate.p_value()


def _corrected(scores: Sequence[ScoreDifference]) -> list[ScoreDifference]:
    if not scores:
        return []
    return [replace(score, p=p) for score, p in zip(scores, holm([s.p for s in scores]), strict=True)]


def _lacking(run: str, before: RunSnapshot, after: RunSnapshot) -> list[Changed]:
    """Scores of a run that only one side has."""
    keys = dict.fromkeys([*before.scores, *after.scores])
    lacking = [key for key in keys if (key in before.scores) != (key in after.scores)]
    sides = [[side.scores[key].value if key in side.scores else None for key in lacking] for side in (before, after)]
    return [Changed(f"{run}: {metric} on {task}", a, b) for (task, metric), a, b in zip(lacking, *sides, strict=True)]


def _parameters(pairs: Sequence[tuple[str, RunSnapshot, RunSnapshot]]) -> list[Changed]:
    """Parameters that differ, each change once with the runs that it concerns."""
    found: dict[tuple[str, str | None, str | None], list[str]] = {}
    for run, *sides in pairs:
        for key in dict.fromkeys([*sides[0].parameters, *sides[1].parameters]):
            a, b = (str(side.parameters[key]) if key in side.parameters else None for side in sides)
            if a != b:
                found.setdefault((key, a, b), []).append(run)
    return [Changed(key, a, b, tuple(runs)) for (key, a, b), runs in found.items()]


def _costs(pairs: Sequence[tuple[str, RunSnapshot, RunSnapshot]]) -> list[CostDifference]:
    costs = []
    for stage in ("training", "scoring", "reasoning"):
        both = [(a.costs[stage], b.costs[stage]) for _, a, b in pairs if stage in a.costs and stage in b.costs]
        if both:
            costs.append(CostDifference(stage, "seconds", *(_seconds(side) for side in zip(*both, strict=True))))
            costs.append(CostDifference(stage, "bytes", *(_peak(side) for side in zip(*both, strict=True))))
    return costs


def _seconds(costs: Sequence[CostExcerpt]) -> float:
    return sum(cost.seconds for cost in costs)


def _peak(costs: Sequence[CostExcerpt]) -> float:
    return float(max(cost.peak_bytes for cost in costs))
