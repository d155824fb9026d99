"""Parameters -> the stages of dvc.yaml, each with its work, memory and disk.

Every stage is counted from its section of params.yaml as its code would run it: the same batches, windows and steps.
What only running can tell is taken from the long side: generated text runs to its full length, every answer to its
last token, texts have as many tokens as are asked for. Where a training text exists already, its record says how much
of it is padding, which the loss leaves out.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bitdistiller.config import (
    EvaluationParams,
    InstructionTextParams,
    Params,
    QuantizerParams,
    ReasoningParams,
    RunParams,
    TextParams,
)
from bitdistiller.distill.trainer import EAGER_LENGTH
from bitdistiller.errors import UserError
from bitdistiller.plan import items, memory
from bitdistiller.plan.architecture import Architecture, architecture
from bitdistiller.plan.memory import Memory, Sharding
from bitdistiller.plan.work import (
    NOTHING,
    Attention,
    Work,
    cast,
    forward,
    head,
    passes,
    search,
    training_pass,
    update,
    writing,
)

# Kinds of stages and the section of params.yaml that each has an instance for.
_SECTIONS = {
    "text": "training_text", "student_text": "student_text", "instruction_text": "instruction_text", "teacher": "data",
    "clip": "quantizers", "train": "runs", "evaluate": "runs", "baseline": "baselines", "ptq": "ptq", "peer": "peers",
    "peer_scores": "peers", "reason": "reasoning", "study": "studies", "report": None,
}  # fmt: skip
KINDS = tuple(_SECTIONS)
_BATCH = 4096  # tokens of a batch of stage `teacher`
_LINE = 9.5  # bytes a token in a file of training text: its number and its letters
_TOKENIZER = 4e6  # bytes of a student's tokenizer
_KEPT_CHECKPOINTS = 2
_AUTO_ROUND_SAMPLES = 8  # sequences of an AutoRound step, its default


@dataclass(frozen=True)
class Setup:
    """What runs are spread over, and whether the device is the host itself, which decides how attention runs.

    Without ``sharding`` each run is as its parameters say.
    """

    devices: int = 1
    sharding: Sharding | None = None
    host: bool = False

    def attention(self, length: int) -> Attention:
        """Of a training pass: ``distill.trainer.choose_attention``."""
        return "plain" if self.host and length <= EAGER_LENGTH else "fused"


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml.

    Attributes:
        kind: its name there; ``key``: its instance, "" where it has none.
        model: that it runs.
        tokens: that it trains on, reads or writes, padding included.
        work: of one device.
        memory: of one device.
        disk: bytes that stay; ``scratch``: bytes needed meanwhile.
        exchanged: bytes that a device sends to the others.
        spread: whether it runs on all devices of a run.
    """

    kind: str
    key: str
    model: str
    tokens: float
    work: Work
    memory: Memory
    disk: float = 0
    scratch: float = 0
    exchanged: float = 0
    spread: bool = False

    @property
    def name(self) -> str:
        """As DVC calls it."""
        return f"{self.kind}@{self.key}" if self.key else self.kind


def stages(params: Params, results: Path, setup: Setup) -> list[Stage]:
    """All stages of a scale, in the order of dvc.yaml.

    Args:
        results: folder with the records of texts that exist already.

    Raises:
        UserError: a model of unknown shape, or a step with fewer sequences than devices.
    """
    return list(_Scale(params, results, setup).all())


@dataclass(frozen=True)
class _Scale:
    params: Params
    results: Path
    setup: Setup

    def all(self) -> Iterator[Stage]:
        for kind, section in _SECTIONS.items():
            make: Callable[[str, str], Stage] = getattr(self, f"_{kind}", self._light)
            for key in getattr(self.params, section) if section else [""]:
                stage = make(kind, key)
                yield replace(stage, work=stage.work + passes(stages=1, stored_bytes=stage.disk))

    def _light(self, kind: str, key: str) -> Stage:
        return Stage(kind, key, "", 0, NOTHING, Memory())

    # --- texts ------------------------------------------------------------------------------------------------------

    def _text(self, kind: str, key: str) -> Stage:
        return self._written_text(kind, key, architecture(self.params.training_text[key].generator))

    def _student_text(self, kind: str, key: str) -> Stage:
        return self._written_text(kind, key, self._quantized(self.params.student_text[key].generator))

    def _written_text(self, kind: str, key: str, shape: Architecture) -> Stage:
        text: TextParams = self.params.texts[key]
        batches = math.ceil(text.sequences / text.batch_size)
        rows = min(text.batch_size, text.sequences)
        work = NOTHING
        if batches:
            work = writing(shape, rows, text.prompt_length, text.length - text.prompt_length) * batches
        if kind == "student_text":
            work += passes(rounded_weights=shape.quantizable)
        tokens = (text.sequences + text.corpus_sequences) * text.length
        work += _loading(shape) + _tokenizing(text.text, "train")
        held = memory.generating(shape, max(1, rows), text.prompt_length, text.length, low=True)
        if self.setup.host:  # it is loaded in fp32 before it is cast
            loading = Memory({"masters": 4 * shape.parameters, "weights": 2 * shape.parameters})
            held = max(held, loading, key=lambda one: one.total)
        return Stage(kind, key, shape.name, tokens, work, held, disk=tokens * _LINE)

    def _instruction_text(self, kind: str, key: str) -> Stage:
        text: InstructionTextParams = self.params.instruction_text[key]
        shape = architecture(text.generator)
        prompt = text.length // 4
        rows = max(1, text.batch_tokens // text.length)
        work = writing(shape, rows, prompt, text.length - prompt) * (text.sequences / rows)
        tokens = text.sequences * text.length
        held = memory.generating(shape, rows, prompt, text.length, low=True)
        return Stage(kind, key, shape.name, tokens, work + cast(shape) + _loading(shape), held, disk=tokens * _LINE)

    # --- teacher, clipping, training ----------------------------------------------------------------------------------

    def _teacher(self, kind: str, key: str) -> Stage:
        data = self.params.data[key]
        shape, (sequences, length) = architecture(data.teacher), self._size(data.training_text)
        rows, tokens = max(1, _BATCH // length), sequences * length
        work = (forward(shape, rows, length) + cast(shape)) * (sequences / rows)
        work += head(shape, tokens, 512) + passes(compared_logits=tokens * shape.vocabulary) + _loading(shape)
        held = memory.caching(shape, rows * length, low=data.teacher_weights == "bf16")
        disk = 2 * tokens * shape.hidden + 2 * shape.head + 9 * tokens + 20 * shape.vocabulary
        return Stage(kind, key, shape.name, tokens, work, held, disk=disk)

    def _clip(self, kind: str, key: str) -> Stage:
        quantizer = self.params.quantizers[key]
        shape = architecture(quantizer.model)
        tokens, length = quantizer.calibration_tokens, quantizer.calibration_length
        work = search(shape, quantizer.clip, tokens, length, quantizer.group_size) + _loading(shape)
        if quantizer.clip != "none":
            work += _tokenizing(quantizer.text, "train")
        held = memory.searching(shape, tokens, length)
        if quantizer.clip == "none":
            return Stage(kind, key, shape.name, 0, work, Memory({"masters": held.parts["masters"]}))
        groups = (shape.quantizable - shape.unclipped) / quantizer.group_size
        return Stage(kind, key, shape.name, tokens, work, held, disk=8 * groups)

    def _train(self, kind: str, key: str) -> Stage:
        run = self.params.runs[key]
        shape, data = self._quantized(run.quantizer), self.params.data[run.data]
        teacher, (_, length) = architecture(data.teacher), self._size(data.training_text)
        rows, count = self._micro_batches(key, run, length)
        attention = self.setup.attention(length)
        filled = self._filled(data.training_text)
        one = training_pass(shape, teacher, rows, length, filled, attention, run.activation_checkpointing)
        sharding = self.setup.sharding or run.sharding
        step = one * count + update(shape) * (1 / (self.setup.devices if sharding == "full" else 1))
        checkpoints, written = run.steps // run.checkpoint_every, 12 * shape.parameters
        work = step * run.steps + self._validations(shape, run, rows, length, attention)
        work += _tokenizing(run.validation_text, "validation")
        work += passes(stored_bytes=checkpoints * written) + _loading(shape) + _hashing(2 * teacher.hidden * length)
        held = memory.training(
            shape,
            teacher,
            rows,
            length,
            count,
            attention == "plain",
            run.activation_checkpointing,
            self.setup.devices,
            sharding,
        )
        return Stage(
            kind, key, shape.name, run.steps * run.batch_tokens, work, held,
            disk=4 * shape.parameters + _TOKENIZER,
            scratch=written * min(checkpoints, _KEPT_CHECKPOINTS + 1),
            exchanged=self._exchanged(shape, count, sharding) * run.steps,
            spread=True,
        )  # fmt: skip

    def _micro_batches(self, name: str, run: RunParams, length: int) -> tuple[int, int]:
        """Sequences of one forward pass on one device, and passes of a step on each."""
        sequences, devices = run.batch_tokens // length, self.setup.devices
        if sequences < devices:
            raise UserError(
                f"run {name} has {sequences} sequences a step, too few for {devices} devices; plan for fewer, or raise "
                "batch_tokens"
            )
        passes_of_each = math.ceil(run.micro_batches / devices)
        return math.ceil(sequences / (passes_of_each * devices)), passes_of_each

    def _validations(self, shape: Architecture, run: RunParams, rows: int, length: int, attention: Attention) -> Work:
        """Held-out cross-entropy before training and every ``validate_every`` steps; its logits are whole."""
        times = 1 + run.steps // run.validate_every
        sequences = run.validation_sequences / self.setup.devices
        tokens = rows * length
        batch = forward(shape, rows, length, attention=attention) + head(shape, tokens, tokens)
        batch += passes(rounded_weights=shape.quantizable, evaluated_logits=tokens * shape.vocabulary)
        return batch * (times * sequences / rows)

    def _exchanged(self, shape: Architecture, count: int, sharding: Sharding) -> float:
        """Bytes of a step that a device sends: gradients once (DDP), or gathered layers and gradients in every pass."""
        devices = self.setup.devices
        ring = (devices - 1) / devices * 4 * shape.parameters
        return ring * (2 if sharding == "none" else 3 * count)

    # --- scores -------------------------------------------------------------------------------------------------------

    def _evaluate(self, kind: str, key: str) -> Stage:
        return self._scores(kind, key, self._quantized(self.params.runs[key].quantizer), quantized=True)

    def _ptq(self, kind: str, key: str) -> Stage:
        return self._scores(kind, key, self._quantized(self.params.ptq[key].quantizer), quantized=True)

    def _peer_scores(self, kind: str, key: str) -> Stage:
        return self._scores(kind, key, self._quantized(self.params.peers[key].quantizer))

    def _baseline(self, kind: str, key: str) -> Stage:
        baseline = self.params.baselines[key]
        return self._scores(kind, key, architecture(baseline.model), original=baseline.weights != "pretrained")

    def _scores(
        self, kind: str, key: str, shape: Architecture, original: bool = True, quantized: bool = False
    ) -> Stage:
        models = 2 if original else 1
        work = (_loading(shape) + _hashing(4 * shape.parameters)) * models
        if quantized:
            work += passes(summarized_weights=shape.quantizable, rounded_weights=shape.quantizable)
        read, tokens = _evaluation(shape, self.params.evaluation, models)
        evaluation = self.params.evaluation
        held = memory.scoring(shape, evaluation.batch_tokens, models, low=evaluation.weights == "bf16")
        return Stage(kind, key, shape.name, tokens, work + read, held)

    def _reason(self, kind: str, key: str) -> Stage:
        shape = self._scored_shape(key)
        chosen = self.params.reasoning[key]
        work, tokens = _reasoning(shape, chosen)
        new = max(part.max_new_tokens for part in (chosen.gsm8k, chosen.humaneval) if part) if _writes(chosen) else 0
        length = items.HUMANEVAL_PROMPT / items.token_characters(shape.vocabulary) + new
        rows = max(1, int(chosen.batch_tokens // length))
        low = self.params.evaluation.weights == "bf16"
        reading = memory.scoring(shape, chosen.batch_tokens, low=low)
        held = memory.generating(shape, rows, int(length - new), int(length), low=low) if new else reading
        loading = (_loading(shape) + _hashing(4 * shape.parameters)) * 2
        return Stage(kind, key, shape.name, tokens, work + loading, max(held, reading, key=lambda one: one.total))

    def _scored_shape(self, name: str) -> Architecture:
        if name in self.params.baselines:
            return architecture(self.params.baselines[name].model)
        entry = self.params.runs.get(name) or self.params.ptq.get(name) or self.params.peers[name]
        return self._quantized(entry.quantizer)

    def _peer(self, kind: str, key: str) -> Stage:
        peer = self.params.peers[key]
        quantizer = self.params.quantizers[peer.quantizer]
        shape = architecture(quantizer.model)
        work = _peer_work(peer.method, peer.iterations or 0, shape, quantizer) + _loading(shape) * 3
        copies = 8 * shape.parameters  # the model and what becomes of it, on the processor in any case
        held = Memory({"masters": copies}) if self.setup.host else Memory(host=copies)
        return Stage(
            kind, key, shape.name, quantizer.calibration_tokens, work, held,
            disk=4 * shape.parameters + _TOKENIZER, scratch=8 * shape.parameters,
        )  # fmt: skip

    # --- names --------------------------------------------------------------------------------------------------------

    def _quantized(self, quantizer: str) -> Architecture:
        return architecture(self.params.quantizers[quantizer].model)

    def _size(self, name: str) -> tuple[int, int]:
        """Sequences of a training text, and the length that they are padded to."""
        text = self.params.texts[name]
        return text.sequences + getattr(text, "corpus_sequences", 0), text.length

    def _filled(self, name: str) -> float:
        """Share of a training text that is no padding; 1 if it does not exist yet."""
        try:
            record = json.loads((self.results / "text" / f"{name}.json").read_text())
            return min(1.0, record["tokens"] / (record["sequences"] * self.params.texts[name].length))
        except (OSError, ValueError, KeyError, ZeroDivisionError):
            return 1.0


def _loading(shape: Architecture) -> Work:
    """Reading a model's weights, or making them ready."""
    return passes(stored_bytes=2 * shape.parameters, moved_bytes=8 * shape.parameters)


def _tokenizing(texts: list[str], split: str) -> Work:
    """A whole split is tokenized whatever is taken of it; that of a file of unknown size is not counted."""
    size = items.text_characters(texts, split)
    return passes(tokenized_characters=size if math.isfinite(size) else 0)


def _hashing(size: float) -> Work:
    return passes(stored_bytes=size)


def _evaluation(shape: Architecture, chosen: EvaluationParams, models: int) -> tuple[Work, float]:
    """Perplexity with ``models`` models side by side, then tasks with one."""
    work, tokens = cast(shape) * models, 0.0
    for text in chosen.perplexity.values():
        count = min(text.max_tokens, _test_tokens(text.text, shape.vocabulary))
        rows = max(1, chosen.batch_tokens // text.window)
        work += (forward(shape, rows, text.window) * (count / rows / text.window) + _read(shape, count)) * models
        logits = count * shape.vocabulary
        work += passes(compared_logits=logits) if models > 1 else passes(scored_logits=logits)
        tokens += count
    if chosen.tasks:
        work += cast(shape) + passes(scorings=1)
    for name, task in chosen.tasks.items():
        known = items.BENCHMARKS.get(name, items.UNKNOWN)
        part, read = _choices(shape, known, min(task.limit, known.count), 0, chosen.batch_tokens)
        work, tokens = work + part, tokens + read
    return work, tokens


def _read(shape: Architecture, tokens: float) -> Work:
    """Logits of ``tokens`` positions in chunks of 2**22 of them (``evaluate.likelihood``)."""
    return head(shape, tokens, max(1, 2**22 // shape.vocabulary))


def _test_tokens(texts: list[str], vocabulary: int) -> float:
    return items.text_characters(texts, "test") / items.token_characters(vocabulary)


def _choices(
    shape: Architecture, known: items.Items, count: float, shared: float, batch_tokens: int
) -> tuple[Work, float]:
    """``count`` items, each after ``shared`` characters of examples, of which a batch holds one copy for several."""
    size = items.token_characters(shape.vocabulary)
    own, scored = known.characters / size, known.scored / size + known.contexts * known.choices
    if shared:
        members = max(1, int(2 * shared / known.characters))  # a sequence is three trunks long at most
        own += shared / size / members
        length = own * members
    else:
        length = own / known.contexts
    tokens = own * count
    rows = max(1, int(batch_tokens / length))
    work = forward(shape, rows, round(length)) * (tokens / (rows * round(length)))
    logits = scored * count * shape.vocabulary
    return work + _read(shape, scored * count) + passes(scored_logits=logits), tokens


def _writes(chosen: ReasoningParams) -> bool:
    return chosen.gsm8k is not None or chosen.humaneval is not None


def _reasoning(shape: Architecture, chosen: ReasoningParams) -> tuple[Work, float]:
    size, work, tokens = items.token_characters(shape.vocabulary), cast(shape) + passes(scorings=1), 0.0
    if chosen.mmlu:
        count = min(items.SUBJECTS * chosen.mmlu.limit, items.MMLU_ITEMS)
        shared = chosen.mmlu.shots * items.MMLU_SHOT
        part, read = _choices(shape, items.MMLU, count, shared, chosen.batch_tokens)
        work, tokens = work + part, tokens + read
    shown = items.GSM8K_EXAMPLES if chosen.gsm8k and chosen.gsm8k.style == "examples" else 0
    for section, most, question, examples in (
        (chosen.gsm8k, items.GSM8K, items.GSM8K_QUESTION, shown),
        (chosen.humaneval, items.HUMANEVAL, items.HUMANEVAL_PROMPT, 0),
    ):
        if section:
            answers = min(section.limit, most) * section.samples
            prompt, new = round(question / size), section.max_new_tokens
            rows = min(answers, max(1, chosen.batch_tokens // (prompt + new)))
            batch = writing(shape, rows, prompt, new, round(examples / size))
            work, tokens = work + batch * (answers / rows), tokens + answers * (prompt + new)
    return work, tokens


def _peer_work(method: str, iterations: int, shape: Architecture, quantizer: QuantizerParams) -> Work:
    """Other people's quantizers, from their algorithms alone: within a small factor.

    HQQ passes over its weights some twenty times. GPTQ runs every block twice over the calibration text, gathers each
    layer's Hessian and factorises it. AutoRound trains the rounding of one block after the other.
    """
    rows = quantizer.calibration_tokens // quantizer.calibration_length or 1
    once = forward(shape, rows, quantizer.calibration_length)
    if method == "hqq":
        return passes(rounded_weights=20 * shape.quantizable)
    if method == "gptq":
        tokens = rows * quantizer.calibration_length
        hessians = sum(
            count * (2 * tokens * inner**2 + inner**3 + 2 * inner**2 * out) for (inner, out), count in shape.matrices
        )
        return once * 2 + passes(fp32_products=hessians)
    step = training_pass(shape, shape, _AUTO_ROUND_SAMPLES, quantizer.calibration_length, 0, "fused", False)
    return once * 2 + step * iterations
