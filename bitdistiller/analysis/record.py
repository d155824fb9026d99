"""What a study found, as it is written to disk: rows of its table, judged claims, and how each run was made."""

from typing import Literal

import pandas as pd

from bitdistiller.analysis.power import Detectable
from bitdistiller.analysis.verdict import JudgedClaim
from bitdistiller.results import Cost, CurvePoint, Environment, Record, TrainingRecord, WeightSummary


class Row(Record):
    """One number of a study's table.

    ``kind`` is ``run`` (one trained or untrained model), ``mean`` (a condition, over its seeds) or ``published`` (a
    paper's number for another model). ``condition`` is the label of the condition, ``level`` its place on a numeric
    axis. Perplexities are as they are, accuracies and retentions are shares. ``task`` is ``mean`` for an average over
    tasks; ``n`` counts items or documents.
    """

    kind: Literal["run", "mean", "published"]
    source: str
    model: str
    condition: str
    level: float | None
    run: str | None
    task: str
    metric: str
    value: float
    standard_error: float | None
    low: float | None
    high: float | None
    n: int | None
    seeds: int | None


class ReasoningSummary(Record):
    """How a run's scores on MMLU, GSM8K and HumanEval were made, and what that cost."""

    parameters_used: dict
    environment: Environment
    cost: Cost


class RunSummary(Record):
    """What the report needs of one run besides its scores: how it was made and what it cost."""

    run: str
    condition: str
    model: str
    origin: str
    bits: float
    bits_per_weight: float
    parameters: int
    quantized_parameters: int
    model_sha256: str
    original_sha256: str | None
    data: dict
    environment: Environment
    scoring: Cost
    training: TrainingRecord | None
    weights: WeightSummary | None
    parameters_used: dict
    reasoning: ReasoningSummary | None = None


class StudyReport(Record):
    """Everything a study found: the only input of its figures and of its part of the report."""

    name: str
    question: str
    source: str
    scale: str
    params: dict
    chance: dict[str, float]
    detectable: Detectable
    rows: list[Row]
    claims: list[JudgedClaim]
    runs: list[RunSummary]

    def frame(self) -> pd.DataFrame:
        """The tidy table."""
        return pd.DataFrame([row.model_dump() for row in self.rows], columns=list(Row.model_fields))

    def curve(self, run: str) -> list[CurvePoint]:
        """The training curve of a run; empty for one that was not trained."""
        training = next(summary.training for summary in self.runs if summary.run == run)
        return training.curve if training else []
