"""A Hugging Face ``Trainer`` whose checkpoints hold no pickles and fit any number of processes.

The stock Trainer writes optimizer, scheduler and random state with ``torch.save``. Here they go into the files of
``checkpoint``, so that loading one can run no code, and a resumed run continues bit for bit. Checkpoints lie in a
folder named by the fingerprint of the run, so that one with other parameters, other code or other libraries starts
afresh instead of continuing what it did not begin. How many processes there are, and whether each holds all weights,
is not part of that: the same files continue either way.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import torch
import transformers
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from transformers import Trainer, TrainingArguments

from bitdistiller.device import has_bf16
from bitdistiller.errors import Stopped
from bitdistiller.training import checkpoint, processes
from bitdistiller.training.sharding import is_sharded
from bitdistiller.training.stopping import StopAtSignal


def fingerprint(parameters: dict, *sources: Path) -> str:
    """Name of a run by everything that decides its weights: parameters, libraries, and code in files and folders."""
    code = [path for source in sources for path in ([source] if source.is_file() else sorted(source.glob("*.py")))]
    identity = [parameters, torch.__version__, transformers.__version__, *(path.read_text() for path in code)]
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]


def training_arguments(output_dir: Path, **options) -> TrainingArguments:
    """TrainingArguments with this project's fixed habits: no reporting services, bf16 where native, AdamW."""
    return TrainingArguments(
        output_dir=str(output_dir),
        report_to="none",
        bf16=has_bf16(),
        use_cpu=not torch.cuda.is_available(),
        optim="adamw_torch_fused",
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        **options,
    )


class SafeTrainer(Trainer):
    """Trainer with safetensors + JSON checkpoints, one written before SIGTERM ends it.

    They lie in ``output_dir``, which belongs to one run: give it a name with the run's ``fingerprint``. A model that
    ``shard`` was applied to stays sharded.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.is_distributed_loading_by_transformers = is_sharded(self.model)  # see ``sharding``
        self.resumed_at, self._stop = 0, StopAtSignal()
        self.add_callback(self._stop)

    def train(self, *args, **kwargs):
        """Train from the last checkpoint on, whose step is ``resumed_at``, or from the beginning.

        Raises:
            Stopped: SIGTERM ended it before its last step.
        """
        last = self.last_checkpoint() if processes.is_main() else None
        self.resumed_at = processes.from_main(_step(last))
        resume = Path(self.args.output_dir) / f"checkpoint-{self.resumed_at}"
        if self.resumed_at and processes.is_main():
            print(f"resuming from {resume}")
        output = super().train(*args, resume_from_checkpoint=str(resume) if self.resumed_at else None, **kwargs)
        if self._stop.stopped:
            raise Stopped(
                f"stopped by SIGTERM after step {self.state.global_step} of {self.state.max_steps}, with a checkpoint; "
                "the same command goes on from there"
            )
        return output

    def get_eval_dataloader(self, eval_dataset=None):
        """All evaluation examples: ``dataloader_drop_last`` is meant for training."""
        for_training, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = for_training

    def last_checkpoint(self) -> Path | None:
        """Newest checkpoint of this run, or None; one that a kill or a full disk damaged is skipped."""
        for folder in sorted(Path(self.args.output_dir).glob("checkpoint-*"), key=_step, reverse=True):
            if not checkpoint.is_complete(folder):  # interrupted while it was written
                shutil.rmtree(folder)
            elif problem := checkpoint.damage(folder):
                print(f"{folder} is skipped: {problem}", file=sys.stderr)
            else:
                return folder
        return None

    def full_state_dict(self) -> dict[str, torch.Tensor]:
        """All weights, each once, in the main process; others get nothing and have to ask too."""
        state = get_model_state_dict(self.model, options=_options())
        tied = dict(self.model.named_parameters(remove_duplicate=False)).keys() - dict(self.model.named_parameters())
        return {name: tensor for name, tensor in state.items() if name not in tied}

    def _save_checkpoint(self, model, trial) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            checkpoint.complete(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        state = self.full_state_dict()
        if self.args.should_save:
            self.model.save_pretrained(output_dir or self.args.output_dir, state_dict=state)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        state = dict(checkpoint.read_weights(Path(resume_from_checkpoint))) if processes.is_main() else {}
        set_model_state_dict(self.model, state, options=_options(strict=False))  # tied weights lie there once

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        state = get_optimizer_state_dict(self.model, self.optimizer.optimizer, options=_options())
        if self.args.should_save:
            checkpoint.write_optimizer(state, Path(output_dir))
            checkpoint.write_scheduler(self.lr_scheduler.state_dict(), Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder is None:
            return
        folder = Path(checkpoint_folder)
        state = checkpoint.read_optimizer(folder) if processes.is_main() else {}
        set_optimizer_state_dict(self.model, self.optimizer.optimizer, state, options=_options())
        self.lr_scheduler.load_state_dict(checkpoint.read_scheduler(folder))

    def _save_rng_state(self, output_dir: str) -> None:
        if self.args.should_save:
            checkpoint.write_random(Path(output_dir))

    def _load_rng_state(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder is not None:
            checkpoint.read_random(Path(checkpoint_folder))


def _options(strict: bool = True) -> StateDictOptions:
    """Whole tensors on the CPU of the main process, whatever the processes hold."""
    several = processes.count() > 1
    return StateDictOptions(full_state_dict=several, cpu_offload=several, broadcast_from_rank0=several, strict=strict)


def _step(folder: Path | None) -> int:
    """Step after which a checkpoint was written; 0 for none."""
    return int(folder.name.rpartition("-")[2]) if folder else 0
