"""The schema of results: what every stage writes, validated when written and again when read.

One scored model leaves in ``results/runs/RUN/`` its ``scores.json`` (a ``RunScores``; ``metrics.json`` repeats the bare
values for DVC) and ``items.csv``, a tidy table of per-item results for paired tests with the columns ``task, item,
metric, value, weight``. The sum of values over the sum of weights is the score (perplexity is its exponential):

    metric          item       value                                                     weight
    acc, acc_norm   question   1 if the right choice is the most likely one, else 0      1
    acc_by_size     question   the weight if the choice is right, else 0 (MMLU)          by the size of its subject
    acc_by_size     question   the same, subjects weighted by their size (MMLU)          the subject's part
    exact_match_*   question   share of samples with the right number                    1
    pass_at_K       problem    unbiased estimate that one of K samples passes            1
    bits_per_byte   solution   bits that the model needs for a person's solution         its bytes
    choice          question   index of the most likely choice, by the rule of ``acc``   1 (no score: flips are counted)
    nll             document   negative log-likelihood in nats (scored as perplexity)    predicted tokens
    worst_share     document   its part of the nats of the worst 1 % of all tokens       nats of all its tokens
    kl              document   KL(original || student) in nats                           predicted tokens
    agreement       document   tokens at which original and student have the same top 1  predicted tokens

Where subjects of MMLU have unequal numbers of items, ``acc`` has weights too, which make all subjects count alike.
``kl`` and ``agreement`` compare with the full-precision model that a student started from; a pretrained baseline, which
is that model, has none. A trained student leaves ``train.json`` beside them (a ``TrainingRecord``).
"""

from pathlib import Path
from typing import Annotated

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bitdistiller.errors import UserError

ITEM_COLUMNS = ["task", "item", "metric", "value", "weight"]


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid")

    def write(self, path: Path) -> None:
        """Validate and write as JSON, replacing the file in one step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        checked = type(self).model_validate(self.model_dump())
        staging = path.with_suffix(".tmp")
        staging.write_text(checked.model_dump_json(indent=2) + "\n")
        staging.replace(path)

    @classmethod
    def read(cls, path: Path):
        """Read and validate; a missing or foreign file is a ``UserError``."""
        try:
            return cls.model_validate_json(path.read_text())
        except FileNotFoundError:
            raise UserError(f"{path} does not exist; run `dvc repro` to make it") from None
        except ValidationError as error:
            raise UserError(f"{path} is not a {cls.__name__}: {error.errors()[0]['msg']}") from None


class Environment(Record):
    """What produced a number: code, libraries and machine.

    ``lock_sha256`` is that of constraints.txt, which pins every library; None outside a checkout.
    """

    commit: str
    dirty: bool
    python: str
    versions: dict[str, str]
    machine: str
    cores: int
    threads: int
    bf16: bool
    lock_sha256: str | None = None


class Cost(Record):
    """Wall time in seconds and peak resident memory in bytes of one stage.

    ``joules`` is the energy of the machine's processor packages meanwhile, with all else that ran on them; None where
    it cannot be read.
    """

    seconds: float
    peak_bytes: int
    joules: float | None = None


class Score(Record):
    """One number with its uncertainty.

    On a task ``acc`` and ``acc_norm`` (on MMLU ``acc``, the mean over subjects, and ``acc_by_size``, which weights them
    by their number of items); on held-out text ``perplexity``, ``worst_share`` (the part of the total negative
    log-likelihood that the worst 1 % of tokens make), ``kl`` (nats a token) and ``agreement`` (a share of tokens).
    ``standard_error`` is the binomial one for accuracy (by subject for MMLU) and else the bootstrap over documents or
    items; ``low`` and ``high``
    bound the 95 % interval. ``n`` counts items (accuracy) or documents. ``chance`` is the score of guessing, where
    there is one.
    """

    task: str
    metric: Annotated[
        str,
        Field(
            pattern="^(perplexity|worst_share|kl|agreement|acc|acc_norm|acc_by_size|exact_match_strict"
            "|exact_match_flexible|pass_at_[1-9][0-9]*|bits_per_byte)$"
        ),
    ]
    value: float
    standard_error: float
    low: float
    high: float
    n: int
    chance: float | None


class LayerSummary(Record):
    """What low-bit weights of one layer are; the means of these over layers, by size, are a ``WeightSummary``.

    ``zeros`` is the share of weights that are 0; ``entropy`` that of the codes within a group, in bits, averaged over
    groups (the same code means another value in a group with another zero point); ``error`` the squared distance from
    the original's weights, relative to their own square. ``weights`` counts them.
    """

    name: str
    weights: int
    zeros: float
    entropy: float
    error: float


class Histogram(Record):
    """Counts of one layer's weights between 62 ``edges``, from -4 to 4 standard deviations of the original's weights.

    ``original`` are the weights of the pretrained model, ``latent`` those that training left, ``low_bit`` the values
    they are rounded to. What lies beyond the edges is counted in the outermost bins.
    """

    layer: str
    edges: list[float]
    original: list[int]
    latent: list[int]
    low_bit: list[int]


class WeightSummary(Record):
    """What became of a quantized model's weights: over all layers, layer by layer, and three layers as histograms.

    The three are the first, the middle and the last quantized layer. ``error`` relates sums over all layers.
    """

    zeros: float
    entropy: float
    error: float
    layers: list[LayerSummary]
    histograms: list[Histogram]


class RunScores(Record):
    """All scores of one model: a trained student, a rounded model or a baseline.

    ``model`` is the name of the architecture's source; ``origin`` says in a sentence what its full-precision weights
    are (for SmolLM2: that they come from a 4-bit file). ``weights`` is None for a model that is not quantized.
    ``model_sha256`` is that of the weights as they were scored, low-bit values and not latent ones
    (``provenance.weights_sha256``); ``original_sha256`` that of the pretrained model they are compared with.
    """

    run: str
    model: str
    origin: str
    bits: float
    bits_per_weight: float
    parameters: int
    quantized_parameters: int
    model_sha256: str
    original_sha256: str | None = None
    scores: list[Score]
    weights: WeightSummary | None = None
    parameters_used: dict
    data: dict
    environment: Environment
    cost: Cost

    def metrics(self) -> dict[str, dict[str, float]]:
        """Values alone, by task and metric, and of the weights: what ``dvc metrics show`` and ``diff`` can read."""
        values = {
            task: {score.metric: score.value for score in self.scores if score.task == task}
            for task in dict.fromkeys(score.task for score in self.scores)
        }
        if self.weights is not None:
            values["weights"] = self.weights.model_dump(include={"zeros", "entropy", "error"})
        return values


class CurvePoint(Record):
    """What training logged after a step. ``validation_nll`` is that of each validation sequence, nats a token."""

    step: int
    loss: float | None = None
    validation_perplexity: float | None = None
    validation_nll: list[float] | None = None


class TeacherRecord(Record):
    """A teacher's confidence over one training text, measured in the ways that ``config.Gamma`` names.

    ``tokens`` leaves padding out; ``padding`` is the share of positions that is padding.
    """

    teacher: str
    teacher_origin: str
    gammas: dict[str, float]
    tokens: int
    padding: float
    dtype: str
    text_sha256: str


class TrainingRecord(Record):
    """How one student was trained and what it cost. ``gamma`` is CAKLD's weight of reverse KL.

    ``tokens`` leaves padding out. ``resumed_at`` is the step of the checkpoint from which the last attempt went on;
    above 0, ``cost`` covers the steps after it only. ``processes`` shared the work; ``cost`` is that of the first.
    """

    run: str
    teacher: str
    steps: int
    tokens: int
    resumed_at: int = 0
    processes: int = 1
    gamma: float | None
    final_loss: float
    curve: list[CurvePoint]
    parameters_used: dict
    environment: Environment
    cost: Cost

    @property
    def validations(self) -> list[CurvePoint]:
        """The validations that all runs with these parameters have; resuming adds one at its checkpoint."""
        every = self.parameters_used["run"]["validate_every"]
        return [point for point in self.curve if point.validation_perplexity is not None and point.step % every == 0]


def write_items(items: pd.DataFrame, path: Path) -> None:
    """Write per-item results; the columns are fixed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    items[ITEM_COLUMNS].to_csv(path, index=False, float_format="%.6g")


def read_items(path: Path) -> pd.DataFrame:
    """Per-item results of one run."""
    if not path.exists():
        raise UserError(f"{path} does not exist; run `dvc repro` to make it")
    return pd.read_csv(path, dtype={"task": str, "item": str, "metric": str})
