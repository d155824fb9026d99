"""The difference of two sets of results as Markdown, for the comment of a continuous-integration job.

By default it says only what a reader has to look at: scores that differ beyond noise, verdicts that changed, runs that
only one side has, parameters and costs that changed, and one line that sums up the rest.
"""

from collections.abc import Mapping, Sequence, Sized

import pandas as pd

from bitdistiller.analysis.difference import CostDifference, Difference, ScoreDifference, compare_results
from bitdistiller.analysis.snapshot import VerdictExcerpt, read_snapshot
from bitdistiller.analysis.verdict import digits, format_effect
from bitdistiller.report.cells import EMPTY, number, to_markdown
from bitdistiller.report.tables import SYMBOLS, duration, memory, probability

NAMED = 6  # runs that a line lists before it counts the others


def compare(before: str, after: str, everything: bool = False) -> str:
    """Markdown about two folders or revisions (``snapshot.read_snapshot``).

    Raises:
        UserError: one of them has no results.
    """
    return difference_markdown(compare_results(read_snapshot(before), read_snapshot(after)), everything)


def difference_markdown(difference: Difference, everything: bool = False) -> str:
    """What differs beyond noise, or all that was compared."""
    before, after = (f"`{name}`" for name in difference.names)
    cost = _section("Cost" if everything else "Cost that changed", _costs(difference, everything))
    if difference.equal and not everything:
        counts = [_count(difference.runs, "run"), _count(difference.scores, "score")]
        counts.append(_count(difference.verdicts, "verdict"))
        line = f"{before} and {after} have the same results: {', '.join(counts)}."
        return "\n\n".join(part for part in (line, cost) if part) + "\n"
    shown = [score for score in difference.scores if everything or score.beyond_noise]
    verdicts = difference.verdicts if everything else difference.changed_verdicts
    parts = [
        f"### Results: A = {before}, B = {after}",
        _summary(difference),
        _section("Scores" if everything else "Scores that differ beyond noise", _scores(shown)),
        _section("Verdicts" if everything else "Verdicts that changed", _verdicts(verdicts)),
        *_only(difference),
        _section("Parameters that differ", _parameters(difference)),
        cost,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _count(things: Sized, noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _summary(difference: Difference) -> str:
    scores = difference.scores
    if not difference.runs:
        return "No run of one is in the other, so no scores can be compared."
    beyond = sum(score.beyond_noise for score in scores)
    same = sum(score.same for score in scores)
    paired = sum(score.paired for score in scores)
    changed, judged = len(difference.changed_verdicts), len(difference.verdicts)
    return (
        f"{_count(difference.runs, 'run')} in both. Of {_count(scores, 'score')}, {same} are the same, "
        f"{len(scores) - same - beyond} differ within noise and {beyond} beyond it (Holm-adjusted p ≤ 5 %; {paired} "
        f"compared on the same items). {changed} of {judged} verdicts changed."
    )


def _section(title: str, table: pd.DataFrame) -> str:
    return "" if table.empty else f"#### {title}\n\n{to_markdown(table)}"


def _scores(scores: Sequence[ScoreDifference]) -> pd.DataFrame:
    rows = [
        {
            "task": score.task,
            "metric": score.metric,
            "A": _value(score, score.before),
            "B": _value(score, score.after),
            "B against A [95 % interval]": _effect(score),
            "p": probability(score.p),
        }
        for score in scores
    ]
    return pd.DataFrame(rows, index=[score.run for score in scores])


def _value(score: ScoreDifference, value: float) -> str:
    return digits(100 * value, 1) if score.unit == "points" else number(value, score.metric)


def _effect(score: ScoreDifference) -> str:
    low, high = (format_effect(bound, score.unit, bare=True) for bound in (score.low, score.high))
    return f"{format_effect(score.effect, score.unit)} [{low}, {high}]" + ("" if score.paired else ", unpaired")


def _verdicts(verdicts: Mapping[str, tuple[VerdictExcerpt, VerdictExcerpt]]) -> pd.DataFrame:
    rows = [{"A": _verdict(before), "B": _verdict(after)} for before, after in verdicts.values()]
    return pd.DataFrame(rows, index=list(verdicts))


def _verdict(verdict: VerdictExcerpt) -> str:
    return f"{SYMBOLS.get(verdict.outcome, '')} {verdict.text}".strip()


def _only(difference: Difference) -> list[str]:
    """What only one of the two has."""
    scores = [
        [change.name for change in difference.lacking if value(change) is not None]
        for value in (lambda change: change.before, lambda change: change.after)
    ]
    there = {"Runs": difference.only, "Scores": scores, "Verdicts": difference.only_verdicts}
    return [
        f"{kind} only in {letter}: {_some(names)}."
        for kind, sides in there.items()
        for letter, names in zip("AB", sides, strict=True)
        if names
    ]


def _some(names: Sequence[str]) -> str:
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _parameters(difference: Difference) -> pd.DataFrame:
    rows = [
        {"A": change.before or EMPTY, "B": change.after or EMPTY, "runs": _some(change.where)}
        for change in difference.parameters
    ]
    return pd.DataFrame(rows, index=[change.name for change in difference.parameters])


def _costs(difference: Difference, everything: bool) -> pd.DataFrame:
    shown = [cost for cost in difference.costs if everything or cost.changed]
    rows = [
        {"A": _cost(cost, cost.before), "B": _cost(cost, cost.after), "change": f"{100 * cost.change:+.0f} %"}
        for cost in shown
    ]
    if rows and difference.machines[0] != difference.machines[1]:
        rows.append({"A": ", ".join(difference.machines[0]), "B": ", ".join(difference.machines[1]), "change": EMPTY})
    kinds = {"seconds": "time of all runs", "bytes": "largest memory of a run"}
    names = [f"{cost.stage}, {kinds[cost.unit]}" for cost in shown]
    return pd.DataFrame(rows, index=names + ["machine"] * (len(rows) - len(names)))


def _cost(cost: CostDifference, value: float) -> str:
    return duration(value) if cost.unit == "seconds" else memory(int(value))
