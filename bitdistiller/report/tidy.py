"""Every score of every run as one tidy table, for people who make their own tables and figures.

A row is one number: of one run (``scale, model, method, bits, seed, run``), on one task, by one metric. A run that
several studies share stands here once. ``method`` says in words how the run was made: format, clipping, objective.
What else tells two runs apart has a column of its own (``group_size``, ``teacher``, ``training_text``, ``steps``),
empty where there is nothing to say. Perplexities are as they are, KL is nats a token, ``bits_per_byte`` is bits,
everything else is a share.

``low`` and ``high`` bound the 95 % interval over items or documents of this one run; of an average over tasks
(``task`` is ``mean``) they are the normal approximation. What is measured on weights (``task`` is ``weights``) is no
sample and has none. ``chance`` is the accuracy of guessing.

Left out: means over seeds and the comparison of conditions, which are in the studies' own tables.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import NormalDist

import pandas as pd

from bitdistiller.analysis.record import Row, RunSummary, StudyReport
from bitdistiller.analysis.rows import MEAN, WEIGHTS
from bitdistiller.analysis.stats import ALPHA
from bitdistiller.errors import UserError

COLUMNS = {
    "scale": "string",
    "model": "string",
    "method": "string",
    "bits": "float64",
    "bits_per_weight": "float64",
    "group_size": "Int64",
    "teacher": "string",
    "training_text": "string",
    "steps": "Int64",
    "seed": "Int64",
    "run": "string",
    "task": "string",
    "metric": "string",
    "value": "float64",
    "standard_error": "float64",
    "low": "float64",
    "high": "float64",
    "n": "Int64",
    "chance": "float64",
}
_FORMATS = {"int-asym": "INT-Asym", "nf-asym": "NF-Asym", "int-sym": "INT-Sym"}
_CLIPPING = {"asymmetric": "asymmetric clipping", "symmetric": "symmetric clipping", "none": "no clipping"}
_LOSSES = {"cakld": "CAKLD", "forward_kl": "forward KL", "reverse_kl": "reverse KL", "jsd": "JSD", "tsld": "TSLD"}
_BASELINES = {"pretrained": "full precision", "random": "random weights"}
_PEERS = {"gptq": "GPTQ", "hqq": "HQQ", "auto-round": "AutoRound"}
_WITHIN = NormalDist().inv_cdf(1 - ALPHA / 2)


def tidy(studies: Mapping[str, Sequence[StudyReport]]) -> pd.DataFrame:
    """The tidy table of all runs: columns as ``COLUMNS``, in the order of scales, studies and runs.

    Args:
        studies: computed studies by the name of their scale.

    Raises:
        UserError: two studies have different numbers for one run.
    """
    rows = [
        {"scale": scale, **row} for scale, reports in studies.items() for row in _runs_once(scale, reports).values()
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def write_tidy(frame: pd.DataFrame, folder: Path) -> list[Path]:
    """Write ``results.csv`` and ``results.json`` (a record a line), numbers to six digits; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    table, records = folder / "results.csv", folder / "results.json"
    frame.to_csv(table, index=False, float_format="%.6g", lineterminator="\n")
    lines = [json.dumps({key: _json(value) for key, value in row.items()}) for row in frame.to_dict("records")]
    records.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    return [table, records]


def _json(value: object) -> object:
    if pd.isna(value):
        return None
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _runs_once(scale: str, reports: Sequence[StudyReport]) -> dict[tuple, dict]:
    """Rows by run, task and metric."""
    seen: dict[tuple, dict] = {}
    for report in reports:
        for summary in report.runs:
            for row in _run_rows(report, summary):
                key = (row["run"], row["task"], row["metric"])
                first = seen.setdefault(key, row)
                if first["value"] != row["value"]:
                    raise UserError(
                        f"scale {scale}: run {row['run']} has {row['metric']} {row['value']:.6g} on {row['task']} in "
                        f"study {report.name} and {first['value']:.6g} in another; run `dvc repro` to compute them anew"
                    )
    return seen


def _run_rows(report: StudyReport, summary: RunSummary) -> Iterator[dict]:
    """All numbers of one run."""
    made = _made(summary)
    scores = [row for row in report.rows if row.kind == "run" and row.run == summary.run]
    for row in scores:
        yield made | _numbers(row) | {"chance": _chance(row, scores, report.chance)}
    for metric in ("zeros", "entropy", "error") if summary.weights else ():
        yield made | {"task": WEIGHTS, "metric": metric, "value": getattr(summary.weights, metric)}


def _numbers(row: Row) -> dict:
    numbers = row.model_dump(include={"task", "metric", "value", "standard_error", "low", "high", "n"})
    if row.low is None and row.standard_error is not None:
        half = _WITHIN * row.standard_error
        numbers |= {"low": row.value - half, "high": row.value + half}
    return numbers


def _chance(row: Row, scores: Sequence[Row], chance: Mapping[str, float]) -> float | None:
    if row.metric not in ("acc", "acc_norm"):
        return None
    if row.task != MEAN:
        return chance.get(row.task)
    tasks = [score.task for score in scores if score.metric == row.metric and score.task in chance]
    return sum(chance[task] for task in tasks) / len(tasks)


def _made(summary: RunSummary) -> dict:
    """What tells a run from others."""
    used, training = summary.parameters_used, summary.training
    trained = training.parameters_used if training else {}
    return summary.model_dump(include={"run", "model", "bits", "bits_per_weight"}) | {
        "method": _method(used) or summary.condition,
        "group_size": used.get("quantizer", {}).get("group_size"),
        "teacher": training.teacher if training else None,
        "training_text": trained.get("data", {}).get("training_text"),
        "steps": training.steps if training else None,
        "seed": used.get("run", {}).get("seed", used.get("seed") if used.get("weights") == "random" else None),
    }


def _method(used: Mapping) -> str:
    """How a run was made, in words."""
    if "weights" in used:
        return _BASELINES[used["weights"]]
    if "peer" in used:
        return _PEERS.get(used["peer"]["method"], used["peer"]["method"])
    quantizer = used.get("quantizer", {})
    made = "rounded" if "ptq" in used else _objective(used.get("run", {}))
    return ", ".join(part for part in (_format(quantizer), _CLIPPING.get(quantizer.get("clip", "")), made) if part)


def _format(quantizer: Mapping) -> str:
    name = quantizer.get("format", "")
    words = [_FORMATS.get(name, name)]
    if quantizer.get("scales") == "learned":
        words.append("with learned scales")
    elif quantizer.get("estimator", "pass-through") != "pass-through":
        words.append(f"with the {quantizer['estimator']} estimator")
    return " ".join(words)


def _objective(run: Mapping) -> str:
    loss = run.get("loss", "")
    if loss == "ce":
        return "cross-entropy"
    words = ("CE + " if run.get("ce_weight") else "") + _LOSSES.get(loss, loss)
    if loss == "cakld" and run.get("gamma", "label") != "label":
        words += f" with gamma {run['gamma']}"
    return words + (f" (T = {run['temperature']:g})" if run.get("temperature", 1) != 1 else "")
