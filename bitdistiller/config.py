"""``params.yaml`` as typed values: what a run, a data set, a quantizer and an evaluation are.

One file of parameters describes one scale; the same classes read all of them. Unknown keys, missing references and
values out of range are refused with the path of the offending key, before anything is computed.
"""

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bitdistiller.errors import UserError

PARAMS_FILE = "params.yaml"
PositiveInt = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0)]
TextNames = Annotated[list[str], Field(min_length=1)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataParams(Section):
    """One distillation set: sequences to train on and the teacher whose distributions they carry.

    ``generator`` writes ``sequences`` continuations of prompts cut from ``text``; ``corpus_sequences`` more are the
    text itself. Lengths are tokens.
    """

    teacher: str
    text: TextNames
    generator: str | None
    sequences: int = Field(ge=0)
    corpus_sequences: int = Field(ge=0)
    length: PositiveInt
    prompt_length: PositiveInt
    temperature: float = Field(gt=0, allow_inf_nan=False)
    top_p: float = Field(gt=0, le=1)
    batch_size: PositiveInt
    seed: Seed

    @model_validator(mode="after")
    def _room_to_write(self) -> "DataParams":
        if self.prompt_length >= self.length:
            raise ValueError(
                f"prompt_length = {self.prompt_length} leaves nothing of length = {self.length} to generate"
            )
        return self


class QuantizerParams(Section):
    """How a model's weights become low-bit: the format and the clipping search that initialises the student.

    ``calibration_tokens`` activations decide the clipping bounds (``clip: asymmetric``), found on ``text``.
    """

    model: str
    format: str
    bits: int = Field(ge=1, le=8)
    group_size: PositiveInt
    clip: Literal["asymmetric", "none"]
    text: TextNames
    calibration_tokens: PositiveInt
    calibration_length: PositiveInt


class RunParams(Section):
    """One student trained one way. ``batch_tokens`` is one optimizer step, split into ``micro_batches`` passes."""

    quantizer: str
    data: str
    loss: Literal["cakld", "forward_kl", "reverse_kl"]
    steps: PositiveInt
    batch_tokens: PositiveInt
    micro_batches: PositiveInt
    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0)
    checkpoint_every: PositiveInt
    validate_every: PositiveInt
    validation_sequences: PositiveInt
    seed: Seed


class BaselineParams(Section):
    """An untrained reference: the full-precision model itself, or the same network with random weights."""

    model: str
    weights: Literal["pretrained", "random"]
    seed: Seed


class PerplexityParams(Section):
    """Held-out perplexity: test documents of ``text`` in windows of ``window`` tokens, ``max_tokens`` in all."""

    text: TextNames
    window: PositiveInt
    max_tokens: PositiveInt


class TaskParams(Section):
    """One benchmark through lm-eval: at most ``limit`` items, ``shots`` examples before each."""

    limit: PositiveInt
    shots: int = Field(ge=0)


class EvaluationParams(Section):
    perplexity: dict[str, PerplexityParams]
    tasks: dict[str, TaskParams]
    batch_tokens: PositiveInt
    seed: Seed


class Params(Section):
    """A whole ``params.yaml``.

    ``root`` and ``weights`` only tell DVC what stages depend on; ``defaults`` is a place for YAML anchors.
    """

    root: str
    weights: str
    scale: str
    threads: PositiveInt
    defaults: dict = {}
    data: dict[str, DataParams]
    quantizers: dict[str, QuantizerParams]
    runs: dict[str, RunParams]
    baselines: dict[str, BaselineParams]
    evaluation: EvaluationParams
    studies: dict[str, dict]

    @model_validator(mode="after")
    def _references_exist(self) -> "Params":
        for name, run in self.runs.items():
            if run.quantizer not in self.quantizers:
                raise ValueError(f"runs.{name}.quantizer names {run.quantizer!r}, which is not under quantizers")
            if run.data not in self.data:
                raise ValueError(f"runs.{name}.data names {run.data!r}, which is not under data")
        if both := set(self.runs) & set(self.baselines):
            raise ValueError(f"{', '.join(sorted(both))} is both a run and a baseline; names must differ")
        return self


def load_params(path: str | Path = PARAMS_FILE) -> Params:
    """Read and check a parameter file.

    Raises:
        UserError: the file is missing, is not YAML, or a value does not fit (the error names the key).
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path.absolute()} does not exist; run from a folder with {PARAMS_FILE} or pass --params")
    try:
        return Params.model_validate(yaml.safe_load(path.read_text()))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}, key {where or '(top level)'}: {first['msg']}") from None


def entry(table: dict, section: str, name: str):
    """``table[name]``, or a sentence that lists the names there are."""
    if name not in table:
        raise UserError(f"{section} has no entry {name!r}; it has {', '.join(table) or 'none'}")
    return table[name]
