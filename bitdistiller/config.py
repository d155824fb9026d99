"""``params.yaml`` as typed values: what a run, a data set, a quantizer and an evaluation are.

One file of parameters describes one scale; the same classes read all of them. Unknown keys, missing references and
values out of range are refused with the path of the offending key, before anything is computed.
"""

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bitdistiller.errors import UserError

PARAMS_FILE = "params.yaml"
PositiveInt = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0)]
TextNames = Annotated[list[str], Field(min_length=1)]


Loss = Literal["cakld", "forward_kl", "reverse_kl", "jsd", "tsld", "ce"]
Gamma = Literal["label", "max", "label-with-padding", "max-with-padding"]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TextParams(Section):
    """Sequences to train on: ``generator`` continues ``sequences`` prompts cut from ``text``.

    ``corpus_sequences`` more are the text itself, in the generator's tokens. Lengths are tokens.
    """

    generator: str
    text: TextNames
    sequences: int = Field(ge=0)
    corpus_sequences: int = Field(ge=0)
    length: PositiveInt
    prompt_length: PositiveInt
    temperature: float = Field(gt=0, allow_inf_nan=False)
    top_p: float = Field(gt=0, le=1)
    batch_size: PositiveInt
    seed: Seed

    @model_validator(mode="after")
    def _room_to_write(self) -> "TextParams":
        if self.prompt_length >= self.length:
            raise ValueError(
                f"prompt_length = {self.prompt_length} leaves nothing of length = {self.length} to generate"
            )
        return self


class DataParams(Section):
    """What a student learns from: a training text (or one that a student wrote) and the teacher that reads it.

    ``teacher_weights`` in bf16 take half the memory; a large teacher then fits one device.
    """

    teacher: str
    training_text: str
    teacher_weights: Literal["fp32", "bf16"] = "fp32"


class QuantizerParams(Section):
    """How a model's weights become low-bit: the format and the clipping search that initialises the student.

    ``calibration_tokens`` activations decide the clipping bounds, found on ``text``: one for each end of a group's
    range (``asymmetric``) or one shrink for both (``symmetric``). ``scales`` are fitted to the latent weights at every
    step or learned beside them; ``estimator`` is the straight-through estimator of the backward pass.
    """

    model: str
    format: str
    bits: int = Field(ge=1, le=8)
    group_size: PositiveInt
    clip: Literal["asymmetric", "symmetric", "none"]
    scales: Literal["fitted", "learned"]
    estimator: Literal["pass-through", "clipped", "tanh"]
    text: TextNames
    calibration_tokens: PositiveInt
    calibration_length: PositiveInt

    @model_validator(mode="after")
    def _learned_scales_bring_their_gradient(self) -> "QuantizerParams":
        if self.scales == "learned" and self.estimator != "clipped":
            raise ValueError("learned scales come with LSQ's gradient, whose estimator is `clipped`; set it so")
        return self


class RunParams(Section):
    """One student trained one way.

    The loss is ``temperature``^2 times the divergence of distributions softened by ``temperature``, plus ``ce_weight``
    times the cross-entropy of the data (``loss: ce`` is that alone). ``gamma``, CAKLD's weight of reverse KL, is a
    number or a way to measure it on the data set: the teacher's mean probability of the label or of its own favourite,
    over real tokens or with padding counted in. ``batch_tokens`` is one optimizer step, split into ``micro_batches``
    passes; several processes share those out, so that their number changes nothing. ``activation_checkpointing``
    computes activations anew in the backward pass instead of keeping them; ``sharding: full`` spreads weights,
    gradients and optimizer over the processes. After ``warmup_steps`` the learning rate falls to 0 along a cosine, or
    stays, as ``schedule`` says.
    """

    quantizer: str
    data: str
    loss: Loss
    gamma: Gamma | Annotated[float, Field(ge=0, le=1)]
    temperature: float = Field(gt=0, allow_inf_nan=False)
    ce_weight: float = Field(ge=0, allow_inf_nan=False)
    allow_vocabulary_mismatch: bool
    steps: PositiveInt
    batch_tokens: PositiveInt
    micro_batches: PositiveInt
    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0)
    checkpoint_every: PositiveInt
    validate_every: PositiveInt
    validation_text: TextNames
    validation_sequences: PositiveInt
    activation_checkpointing: bool = False
    sharding: Literal["none", "full"] = "none"
    seed: Seed


class BaselineParams(Section):
    """An untrained reference: the full-precision model itself, or the same network with random weights."""

    model: str
    weights: Literal["pretrained", "random"]
    seed: Seed


class PtqParams(Section):
    """A model whose weights are clipped and rounded as ``quantizer`` says, and not trained."""

    quantizer: str


class PeerParams(Section):
    """A model that another project's quantizer makes low-bit.

    ``quantizer`` gives model, bits, group size and calibration text; ``iterations`` are AutoRound's steps a block.
    """

    method: Literal["gptq", "hqq", "auto-round"]
    quantizer: str
    iterations: PositiveInt | None = None

    @model_validator(mode="after")
    def _iterations_are_of_auto_round(self) -> "PeerParams":
        if (self.iterations is None) == (self.method == "auto-round"):
            raise ValueError("iterations go with method auto-round, and it needs them")
        return self


class PerplexityParams(Section):
    """Held-out perplexity: test documents of ``text`` in windows of ``window`` tokens, ``max_tokens`` in all."""

    text: TextNames
    window: PositiveInt
    max_tokens: PositiveInt


class TaskParams(Section):
    """One benchmark through lm-eval: at most ``limit`` items, ``shots`` examples before each.

    ``source`` says whether its data is this project's own (from a wheel, without items to show as examples) or the
    official one of the hub, at the commit that ``bitdistiller/data/hub.yaml`` pins.
    """

    limit: PositiveInt
    shots: int = Field(ge=0)
    source: Literal["own", "hub"] = "own"


class EvaluationParams(Section):
    """What every model is scored on. ``weights`` in bf16 take half the memory; low-bit values are rounded to it."""

    perplexity: dict[str, PerplexityParams]
    tasks: dict[str, TaskParams]
    weights: Literal["fp32", "bf16"] = "fp32"
    batch_tokens: PositiveInt
    seed: Seed


class MmluParams(Section):
    """MMLU: ``limit`` items of each of its 57 subjects, ``shots`` of the subject's development items before each."""

    limit: int = Field(ge=2)  # a single item has no standard error
    shots: int = Field(ge=0, le=5)


class WrittenParams(Section):
    """Answers that a model writes: ``limit`` items, ``samples`` answers to each, of at most ``max_new_tokens`` tokens.

    ``temperature`` 0 is greedy, which writes the same answer every time.
    """

    limit: int = Field(ge=2)  # a single item has no standard error
    samples: PositiveInt = 1
    temperature: float = Field(ge=0, allow_inf_nan=False, default=0.0)
    top_p: float = Field(gt=0, le=1, default=1.0)
    max_new_tokens: PositiveInt

    @model_validator(mode="after")
    def _samples_differ(self) -> "WrittenParams":
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"samples = {self.samples} at temperature 0 are the same answer; raise the temperature")
        return self


class Gsm8kParams(WrittenParams):
    """GSM8K: a question after eight worked examples, or asked as an instruction, in the model's chat template."""

    style: Literal["examples", "instruction"] = "examples"


class HumanEvalParams(WrittenParams):
    """HumanEval: the prompt completed as it stands, or asked for as an instruction, in the model's chat template."""

    style: Literal["completion", "instruction"]
    k: Annotated[list[Annotated[int, Field(ge=1, le=200)]], Field(min_length=1)] = [1]

    @model_validator(mode="after")
    def _enough_samples(self) -> "HumanEvalParams":
        if max(self.k) > self.samples:
            raise ValueError(f"pass@{max(self.k)} needs as many samples, not {self.samples}")
        return self


class ReasoningParams(Section):
    """Knowledge, reasoning and code of one scored model; what is left out is not scored.

    ``batch_tokens`` bounds the padded tokens of one forward pass and of the states that writing keeps.
    """

    mmlu: MmluParams | None = None
    gsm8k: Gsm8kParams | None = None
    humaneval: HumanEvalParams | None = None
    batch_tokens: PositiveInt
    seed: Seed

    @model_validator(mode="after")
    def _something_is_scored(self) -> "ReasoningParams":
        if self.mmlu is self.gsm8k is self.humaneval is None:
            raise ValueError("asks for none of mmlu, gsm8k and humaneval; name one, or leave the entry out")
        return self


class InstructionTextParams(Section):
    """Answers of ``generator`` to instructions, to train on: ``sequences`` prompts of ``sources``.

    Sources take turns, one prompt each, or as many as a mapping says: ``{wikitext-2-paragraphs: 3, alpaca: 5}``.
    A sequence is the generator's chat template around an instruction, and its answer, ``length`` tokens at most.
    """

    generator: str
    sources: TextNames | Annotated[dict[str, PositiveInt], Field(min_length=1)]
    sequences: PositiveInt
    length: PositiveInt
    temperature: float = Field(ge=0, allow_inf_nan=False)
    top_p: float = Field(gt=0, le=1)
    batch_tokens: PositiveInt
    seed: Seed


class Params(Section):
    """A whole ``params.yaml``.

    ``root`` and ``weights`` only tell DVC what stages depend on. ``accelerate`` is a configuration of `accelerate
    launch`, seen from the parameter file: training then runs in as many processes as it says. ``defaults`` is a place
    for YAML anchors. The generator of a ``student_text`` is an entry of ``quantizers``: a student before training.
    """

    root: str
    weights: str
    scale: str
    threads: PositiveInt
    accelerate: str | None = None
    defaults: dict = {}
    training_text: dict[str, TextParams]
    student_text: dict[str, TextParams]
    instruction_text: dict[str, InstructionTextParams]
    data: dict[str, DataParams]
    quantizers: dict[str, QuantizerParams]
    runs: dict[str, RunParams]
    baselines: dict[str, BaselineParams]
    ptq: dict[str, PtqParams]
    peers: dict[str, PeerParams]
    evaluation: EvaluationParams
    reasoning: dict[str, ReasoningParams]
    studies: dict[str, dict]

    @property
    def texts(self) -> dict[str, TextParams | InstructionTextParams]:
        """Training texts of all kinds."""
        return self.training_text | self.student_text | self.instruction_text

    @property
    def scored(self) -> set[str]:
        """Names that have scores: of runs, baselines, and models that were rounded or quantized by others."""
        return {*self.runs, *self.baselines, *self.ptq, *self.peers}

    @model_validator(mode="after")
    def _references_exist(self) -> "Params":
        for name, run in self.runs.items():
            _require(run.quantizer, self.quantizers, f"runs.{name}.quantizer", "quantizers")
            _require(run.data, self.data, f"runs.{name}.data", "data")
        for name, rounded in self.ptq.items():
            _require(rounded.quantizer, self.quantizers, f"ptq.{name}.quantizer", "quantizers")
        for name, peer in self.peers.items():
            _require(peer.quantizer, self.quantizers, f"peers.{name}.quantizer", "quantizers")
            quantizer = self.quantizers[peer.quantizer]
            if (quantizer.format, quantizer.clip) != ("int-asym", "none"):
                raise ValueError(
                    f"peers.{name} names quantizer {peer.quantizer}, of format {quantizer.format} with clip "
                    f"{quantizer.clip}; a peer needs format int-asym and clip none, as it fits its own ranges"
                )
        for name, text in self.student_text.items():
            _require(text.generator, self.quantizers, f"student_text.{name}.generator", "quantizers")
        for name, data in self.data.items():
            kinds = "training_text, student_text or instruction_text"
            _require(data.training_text, self.texts, f"data.{name}.training_text", kinds)
        for name in self.reasoning:
            _require(name, dict.fromkeys(self.scored), f"reasoning.{name}", "runs, baselines, ptq or peers")
        texts = [*self.training_text, *self.student_text, *self.instruction_text]
        _refuse_twice(texts, "training_text, student_text and instruction_text")
        _refuse_twice([*self.runs, *self.baselines, *self.ptq, *self.peers], "runs, baselines, ptq and peers")
        return self


def _refuse_twice(names: list[str], sections: str) -> None:
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise ValueError(f"{', '.join(twice)} stands in two of {sections}; names must differ")


def _require(name: str, table: dict, where: str, section: str) -> None:
    if name not in table:
        raise ValueError(f"{where} names {name!r}, which is not under {section}")


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
