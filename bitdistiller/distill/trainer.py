"""One student: clipped teacher weights, fake quantization, distillation on the Hugging Face Trainer.

The Trainer brings the loop, accumulation, checkpoints, resuming and the progress bar; what is ours is one loss. Latent
weights stay in fp32 (at learning rates near 1e-5 a bf16 update vanishes in rounding) and matrix products run under bf16
autocast where the processor has it. A loss that is not finite, or ten times the first one, stops the run before the
update is made: the last checkpoint is then still good, and the error names it.
"""

import math
import shutil
from pathlib import Path

import torch
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
from bitdistiller.training import SafeTrainer, fingerprint, training_arguments

EXPLOSION = 10  # times the first loss
EAGER_LENGTH = 512  # tokens


class DistillationTrainer(SafeTrainer):
    """SafeTrainer whose training loss compares with cached teacher states; evaluation is plain cross-entropy."""

    def __init__(self, *args, teacher_head: torch.Tensor, objective: Objective, **kwargs):
        super().__init__(*args, **kwargs)
        if self.args.world_size * max(1, self.args.n_gpu) > 1:
            raise UserError("a run uses one device: start it in one process, with CUDA_VISIBLE_DEVICES naming one GPU")
        self.teacher_head, self.objective = teacher_head.to(self.args.device), objective
        self.model_accepts_loss_kwargs, self._loss_shifts_labels = True, False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if "teacher_states" not in inputs:
            return super().compute_loss(model, inputs, return_outputs)
        student = self.accelerator.unwrap_model(model)
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=has_bf16()):
            output = student.base_model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
            )
        real = inputs["labels"] != IGNORED
        labels = inputs["labels"][real]
        head = student.get_output_embeddings().weight[: len(self.teacher_head)]  # all of it, unless vocabularies differ
        hidden, teacher_hidden = output.last_hidden_state[real], inputs["teacher_states"][real]
        total = chunked_loss(hidden, head, teacher_hidden, self.teacher_head, labels, self.objective)
        self._refuse_divergence(total.item() / len(hidden))
        return total / num_items_in_batch

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


def train(name: str, params: Params, artifacts: Path) -> TrainingRecord:
    """Train the student of run ``name`` from its clipping bounds and teacher cache; resumes from its last checkpoint.

    The student's latent weights and tokenizer are written to ``artifacts/students/NAME``; its checkpoints, in
    ``artifacts/checkpoints/NAME``, are removed when that is done.

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
    work = artifacts / "checkpoints" / name
    code = [Path(__file__).parent, Path(__file__).parent.parent / "quant", Path(__file__).parent.parent / "training.py"]
    trainer = _trainer(run, params, student, teacher, objective, work / fingerprint(identity, *code))
    resume = trainer.last_checkpoint()
    resumed_at = int(Path(resume).name.rpartition("-")[2]) if resume else 0
    if resume:
        print(f"{name}: resuming from {resume}")
    trainer.train(resume_from_checkpoint=resume)
    out = artifacts / "students" / name
    save_student(student, out)
    record = TrainingRecord(
        run=name,
        teacher=teacher.teacher,
        steps=trainer.state.global_step,
        tokens=trainer.state.num_input_tokens_seen,
        resumed_at=resumed_at,
        gamma=objective.gamma if run.loss == "cakld" else None,
        curve=_curve(trainer.state.log_history),
        final_loss=_final_loss(trainer.state.log_history),
        parameters_used=identity,
        environment=environment(),
        cost=watch.cost(),
    )
    shutil.rmtree(work, ignore_errors=True)
    return record


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
    held_out = packed_blocks(student.tokenizer, load_text(run.validation_text, "validation"), length)
    set_seed(run.seed)
    arguments = training_arguments(
        work,
        per_device_train_batch_size=rows,
        per_device_eval_batch_size=rows,
        gradient_accumulation_steps=run.micro_batches,
        max_steps=run.steps,
        learning_rate=run.learning_rate,
        warmup_steps=run.warmup_steps,
        weight_decay=run.weight_decay,
        lr_scheduler_type="cosine",
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
        seed=run.seed,
    )
    student.model.config.use_cache = False
    choose_attention(student.model, length)
    return DistillationTrainer(
        model=student.model,
        args=arguments,
        train_dataset=DistillationDataset(teacher),
        eval_dataset=BlockDataset(held_out[: run.validation_sequences]),
        teacher_head=teacher.head,
        objective=objective,
    )


def _curve(history: list[dict]) -> list[CurvePoint]:
    points: dict[int, CurvePoint] = {}
    for entry in history:
        point = points.setdefault(entry["step"], CurvePoint(step=entry["step"]))
        if "loss" in entry:
            point.loss = entry["loss"]
        if "eval_loss" in entry:
            point.validation_perplexity = math.exp(min(entry["eval_loss"], 700))
    return [points[step] for step in sorted(points)]


def _final_loss(history: list[dict]) -> float:
    """Mean training loss of the last tenth of the steps."""
    losses = [entry["loss"] for entry in history if "loss" in entry]
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)
