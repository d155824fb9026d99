"""One student: clipped teacher weights, fake quantization, distillation on the Hugging Face Trainer.

The Trainer brings the loop, accumulation, checkpoints, resuming and the progress bar; what is ours is one loss. Latent
weights stay in fp32 (at learning rates near 1e-5 a bf16 update vanishes in rounding) and matrix products run under bf16
autocast where the processor has it. A loss that is not finite, or ten times the first one, stops the run before the
update is made: the last checkpoint is then still good, and the error names it.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import RandomSampler
from transformers import PreTrainedModel, set_seed

from bitdistiller.assets import sha256_file
from bitdistiller.config import Params, RunParams
from bitdistiller.data.blocks import BlockDataset, packed_blocks
from bitdistiller.data.text import load_text
from bitdistiller.device import device, has_bf16
from bitdistiller.distill.chunked import chunked_loss
from bitdistiller.distill.objective import Objective
from bitdistiller.distill.student import prepare_student, save_student
from bitdistiller.distill.teacher import IGNORED, DistillationDataset, TeacherStates, read_teacher
from bitdistiller.errors import UserError
from bitdistiller.models import LoadedModel
from bitdistiller.provenance import Stopwatch, environment
from bitdistiller.results import CurvePoint, TrainingRecord
from bitdistiller.training import processes
from bitdistiller.training.sharding import shard
from bitdistiller.training.trainer import SafeTrainer, fingerprint, training_arguments

EXPLOSION = 10  # times the first loss
EAGER_LENGTH = 512  # tokens
NLL = "eval_nll"


class DistillationTrainer(SafeTrainer):
    """SafeTrainer whose training loss compares with cached teacher states.

    Evaluation is plain cross-entropy, which the log holds of every sequence too, as ``NLL``.
    """

    def __init__(self, model: PreTrainedModel, args, teacher_head: Tensor, objective: Objective, **kwargs):
        if args.n_gpu > 1:
            raise UserError(
                "a process uses one GPU: name one in CUDA_VISIBLE_DEVICES, or start a process for each with the key "
                "accelerate of params.yaml"
            )
        model.forward = _distilling(model, teacher_head.to(args.device), objective)
        super().__init__(model, args, **kwargs)
        self.model_accepts_loss_kwargs, self._loss_shifts_labels = True, False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if "teacher_states" not in inputs:
            return super().compute_loss(model, inputs, return_outputs)
        total = model(**inputs)
        self._refuse_divergence(total.item() / int((inputs["labels"] != IGNORED).sum()))
        return total / num_items_in_batch * self.args.world_size  # gradients are averaged over processes

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Loss of a batch and, in the place of logits, the mean negative log-likelihood of each of its sequences."""
        loss, logits, labels = super().prediction_step(model, inputs, False, ignore_keys)
        rows = zip(logits, labels, strict=True)  # one at a time: a batch of logits in fp32 is large
        return loss, torch.stack([F.cross_entropy(row[:-1].float(), ids[1:]) for row, ids in rows]), None

    def evaluation_loop(self, *args, **kwargs):
        output = super().evaluation_loop(*args, **kwargs)
        self._nll = output.predictions.tolist()
        return output

    def evaluate(self, *args, **kwargs):
        """Metrics, which are logged; the log of this step gets those of the sequences as well."""
        metrics = super().evaluate(*args, **kwargs)
        self.state.log_history[-1][NLL] = self._nll
        return metrics

    def _get_train_sampler(self, train_dataset=None):
        """Whole steps only: an epoch's last sequences, too few for one, wait for the next epoch."""
        data = self.train_dataset if train_dataset is None else train_dataset
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return RandomSampler(data, num_samples=len(data) // step * step)

    def _refuse_divergence(self, loss: float) -> None:
        first = next((entry["loss"] for entry in self.state.log_history if "loss" in entry), loss)
        if math.isfinite(loss) and loss <= EXPLOSION * max(first, 1.0):
            return
        step = self.state.global_step + 1
        checkpoint = self.last_checkpoint() or "none was written yet"
        kind = "is not finite" if not math.isfinite(loss) else f"exploded (it began at {first:.3g})"
        raise UserError(
            f"step {step}: the loss {kind}: {loss:.4g}; last good checkpoint: {checkpoint}; "
            "lower learning_rate or add warmup_steps for this run in params.yaml"
        )


def _distilling(model: PreTrainedModel, teacher_head: Tensor, objective: Objective) -> Callable:
    """A ``forward`` for ``model``: the summed loss where the teacher's states come along, and its own otherwise.

    All of the loss is computed inside of the model's forward pass, as that is what wrappers that spread a model over
    processes watch: weights that are read outside of it have no gradient there, or are half a matrix.
    """
    plain = model.forward

    def forward(*args, teacher_states: Tensor | None = None, **inputs):
        if teacher_states is None:
            return plain(*args, **inputs)
        device = teacher_states.device.type
        with torch.autocast(device, torch.bfloat16, enabled=has_bf16()):
            output = model.base_model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
            )
        real = inputs["labels"] != IGNORED
        labels, teacher_hidden = inputs["labels"][real], teacher_states[real]
        head = model.get_output_embeddings().weight[: len(teacher_head)]  # all of it, unless vocabularies differ
        with torch.autocast(device, enabled=False):
            return chunked_loss(output.last_hidden_state[real], head, teacher_hidden, teacher_head, labels, objective)

    return forward


def train(name: str, params: Params, artifacts: Path) -> TrainingRecord:
    """Train the student of run ``name`` from its clipping bounds and teacher cache; resumes from its last checkpoint.

    One of several processes trains on its share of every step; what is written, the main one writes.

    The student's latent weights and tokenizer are written to ``artifacts/students/NAME``; its checkpoints, in
    ``checkpoints_of``, may be removed when the record is kept.

    Raises:
        UserError: inputs are missing or do not belong together, or the loss diverged.
    """
    watch, run = Stopwatch(), params.runs[name]
    torch.set_num_threads(params.threads)
    teacher = read_teacher(artifacts / "teacher" / run.data)
    bounds = artifacts / "clip" / f"{run.quantizer}.safetensors"
    student = prepare_student(params.quantizers[run.quantizer], bounds)
    check_vocabulary(student, teacher, run.allow_vocabulary_mismatch)
    objective = make_objective(run, teacher)
    identity = {
        "run": run.model_dump(),
        "quantizer": params.quantizers[run.quantizer].model_dump(),
        "data": params.data[run.data].model_dump(),
        "clip": sha256_file(bounds),
        "teacher": sha256_file(teacher.states),
        "teacher_data": sha256_file(teacher.states.with_name("data.safetensors")),
        "threads": params.threads,
    }
    work = checkpoints_of(name, artifacts) / _fingerprint(identity)
    trainer = _trainer(run, params, student, teacher, objective, work)
    trainer.train()
    state = trainer.full_state_dict()
    if processes.is_main():
        save_student(student, state, artifacts / "students" / name)
    return TrainingRecord(
        run=name,
        teacher=teacher.teacher,
        steps=trainer.state.global_step,
        tokens=trainer.state.num_input_tokens_seen,
        resumed_at=trainer.resumed_at,
        processes=trainer.args.world_size,
        gamma=objective.gamma if run.loss == "cakld" else None,
        curve=_curve(trainer.state.log_history),
        final_loss=_final_loss(trainer.state.log_history),
        parameters_used=identity,
        environment=environment(),
        cost=watch.cost(),
    )


def checkpoints_of(name: str, artifacts: Path) -> Path:
    """Folder of the checkpoints of run ``name``, a folder in it for each way in which it was begun."""
    return artifacts / "checkpoints" / name


def _fingerprint(identity: dict) -> str:
    """Of what decides the student's weights; where they lie while they are trained, and what is kept, does not."""
    run = {key: value for key, value in identity["run"].items() if key not in ("sharding", "activation_checkpointing")}
    package = Path(__file__).parent.parent
    return fingerprint(identity | {"run": run}, package / "distill", package / "quant", package / "training")


def make_objective(run: RunParams, teacher: TeacherStates) -> Objective:
    """The run's loss, gamma measured on its data if it is not a number."""
    gamma = teacher.gammas[run.gamma] if isinstance(run.gamma, str) else run.gamma
    return Objective(run.loss, gamma, run.temperature, run.ce_weight)


def choose_attention(model: PreTrainedModel, length: int) -> None:
    """Set whichever attention trains faster: on a CPU the fused one's backward pass loses on short sequences.

    Measured on SmolLM2-135M at 8 x 256 tokens, where a step takes a tenth less time with the plain one; its memory
    grows with the square of the length.
    """
    if device().type == "cpu" and length <= EAGER_LENGTH:
        model.set_attn_implementation("eager")


def check_vocabulary(student: LoadedModel, teacher: TeacherStates, allow_mismatch: bool) -> None:
    """Refuse a teacher whose token ids mean other strings than the student's.

    With ``allow_mismatch`` the ids that both have are compared as they stand, which is what code without this check
    does.

    Raises:
        UserError: the vocabularies differ, so distributions would be compared across unrelated tokens; or the teacher's
            text holds ids that the student does not have.
    """
    own = student.tokenizer.get_vocab()
    rows = student.model.get_output_embeddings().weight.shape[0]
    if own == teacher.vocabulary and rows == len(teacher.head):
        return
    if allow_mismatch and int(teacher.input_ids.max()) < rows >= len(teacher.head):
        return
    differing = sum(teacher.vocabulary.get(token) != index for token, index in own.items())
    raise UserError(
        f"teacher {teacher.teacher} and student {student.name} have different vocabularies ({differing:,} of "
        f"{len(own):,} tokens have another id; output heads of {rows:,} and {len(teacher.head):,} rows); "
        "choose a teacher with the student's tokenizer, or one whose ids the student has, and set "
        "allow_vocabulary_mismatch to see what that does"
    )


def _trainer(
    run: RunParams, params: Params, student: LoadedModel, teacher: TeacherStates, objective: Objective, work: Path
) -> DistillationTrainer:
    length = teacher.input_ids.shape[1]
    rows, left = divmod(run.batch_tokens, length * run.micro_batches)
    if left or not rows:
        raise UserError(
            f"batch_tokens = {run.batch_tokens} is not a multiple of sequence length {length} x micro_batches "
            f"{run.micro_batches}; change one of them in params.yaml"
        )
    if rows * run.micro_batches > len(teacher.input_ids):
        raise UserError(
            f"a step of {run.batch_tokens} tokens needs {rows * run.micro_batches} sequences and data set {run.data} "
            f"has {len(teacher.input_ids)}; lower batch_tokens or make more sequences"
        )
    passes = _passes(run)
    held_out = packed_blocks(student.tokenizer, load_text(run.validation_text, "validation"), length)
    set_seed(run.seed)
    arguments = training_arguments(
        work,
        per_device_train_batch_size=rows,
        per_device_eval_batch_size=rows,
        gradient_accumulation_steps=passes,
        max_steps=run.steps,
        learning_rate=run.learning_rate,
        warmup_steps=run.warmup_steps,
        weight_decay=run.weight_decay,
        lr_scheduler_type={"cosine": "cosine", "constant": "constant_with_warmup"}[run.schedule],
        max_grad_norm=1.0,
        dataloader_drop_last=True,
        eval_on_start=True,
        eval_strategy="steps",
        eval_steps=run.validate_every,
        save_strategy="steps",
        save_steps=run.checkpoint_every,
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,
        prediction_loss_only=True,
        include_num_input_tokens_seen="non_padding",
        activation_checkpointing=run.activation_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": run.sharding == "full"}},
        seed=run.seed,
    )
    student.model.config.use_cache = False
    choose_attention(student.model, length)
    if run.sharding == "full" and processes.count() > 1:
        shard(student.model)
    return DistillationTrainer(
        model=student.model,
        args=arguments,
        train_dataset=DistillationDataset(teacher),
        eval_dataset=BlockDataset(held_out[: run.validation_sequences]),
        teacher_head=teacher.head,
        objective=objective,
    )


def _passes(run: RunParams) -> int:
    """Forward passes of each process in one step."""
    passes, left = divmod(run.micro_batches, processes.count())
    if left:
        raise UserError(
            f"micro_batches = {run.micro_batches} cannot be shared out among {processes.count()} processes; make it a "
            "multiple of their number (num_processes in the file that accelerate names in params.yaml)"
        )
    return passes


def _curve(history: list[dict]) -> list[CurvePoint]:
    points: dict[int, CurvePoint] = {}
    for entry in history:
        point = points.setdefault(entry["step"], CurvePoint(step=entry["step"]))
        if "loss" in entry:
            point.loss = entry["loss"]
        if "eval_loss" in entry:
            point.validation_perplexity = math.exp(min(entry["eval_loss"], 700))
            point.validation_nll = entry[NLL]
    return [points[step] for step in sorted(points)]


def _final_loss(history: list[dict]) -> float:
    """Mean training loss of the last tenth of the steps."""
    losses = [entry["loss"] for entry in history if "loss" in entry]
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)
