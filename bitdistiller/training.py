"""A Hugging Face ``Trainer`` whose checkpoints hold no pickles.

The stock Trainer writes optimizer, scheduler and random state with ``torch.save``. Here tensors go into
safetensors and everything else into JSON, so that loading a checkpoint can run no code, and a resumed run
continues bit for bit. Checkpoints lie in a folder named by the fingerprint of the run, so that one with other
parameters, other code or other libraries starts afresh instead of continuing what it did not begin.
"""

import hashlib
import json
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments

from bitdistiller.device import has_bf16

_MARKER = "complete.json"  # the last file a checkpoint gets, in one step: without it the write was interrupted


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
        **options,
    )


class SafeTrainer(Trainer):
    """Trainer with safetensors + JSON checkpoints.

    They lie in ``output_dir``, which belongs to one run: give it a name with the run's ``fingerprint``.
    """

    def get_eval_dataloader(self, eval_dataset=None):
        """All evaluation examples: ``dataloader_drop_last`` is meant for training."""
        for_training, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = for_training

    def last_checkpoint(self) -> str | None:
        """Newest checkpoint of this run, or None; one that a kill or a full disk damaged is skipped."""
        folder = Path(self.args.output_dir)
        steps = {int(path.name.rpartition("-")[2]): path for path in folder.glob("checkpoint-*")}
        for _, checkpoint in sorted(steps.items(), reverse=True):
            if not (checkpoint / _MARKER).exists():  # interrupted while it was written
                shutil.rmtree(checkpoint)
            elif problem := _damage(checkpoint):
                print(f"{checkpoint} is skipped: {problem}", file=sys.stderr)
            else:
                return str(checkpoint)
        return None

    def _save_checkpoint(self, model, trial) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        (folder / "marker.tmp").write_text("{}")
        (folder / "marker.tmp").replace(folder / _MARKER)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        self.accelerator.unwrap_model(self.model).save_pretrained(folder, state_dict=state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        folder, state = Path(output_dir), self.optimizer.state_dict()
        tensors = {f"{index}.{key}": value for index, slot in state["state"].items() for key, value in slot.items()}
        save_file(
            {name: torch.as_tensor(value).contiguous() for name, value in tensors.items()},
            folder / "optimizer.safetensors",
        )
        (folder / "optimizer.json").write_text(json.dumps(state["param_groups"]))
        scheduler = {key: value for key, value in self.lr_scheduler.state_dict().items() if _is_plain(value)}
        (folder / "scheduler.json").write_text(json.dumps(scheduler))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder, slots = Path(checkpoint), {}
        for name, value in load_file(folder / "optimizer.safetensors").items():
            index, key = name.split(".", 1)
            slots.setdefault(int(index), {})[key] = value
        groups = json.loads((folder / "optimizer.json").read_text())
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        self.lr_scheduler.load_state_dict(json.loads((folder / "scheduler.json").read_text()))

    def _save_rng_state(self, output_dir: str) -> None:
        folder = Path(output_dir)
        _, keys, position, has_gauss, cached = np.random.get_state()
        tensors = {"cpu": torch.random.get_rng_state(), "numpy": torch.from_numpy(keys.astype(np.int64))}
        if torch.cuda.is_available():
            tensors |= {f"cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
        save_file(tensors, folder / "rng.safetensors")
        version, words, gauss = random.getstate()
        plain = {"python": [version, list(words), gauss], "numpy": [position, has_gauss, cached]}
        (folder / "rng.json").write_text(json.dumps(plain))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        tensors, plain = load_file(folder / "rng.safetensors"), json.loads((folder / "rng.json").read_text())
        version, words, gauss = plain["python"]
        random.setstate((version, tuple(words), gauss))
        np.random.set_state(("MT19937", tensors["numpy"].numpy().astype(np.uint32), *plain["numpy"]))
        torch.random.set_rng_state(tensors["cpu"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all([tensors[f"cuda.{i}"] for i in range(torch.cuda.device_count())])


def _is_plain(value) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    return value is None or isinstance(value, bool | int | float | str)


def _damage(checkpoint: Path) -> str | None:
    """What makes a checkpoint unreadable, if anything does."""
    try:
        for path in checkpoint.glob("*.json"):
            json.loads(path.read_text())
        for path in checkpoint.glob("*.safetensors"):
            with safe_open(path, framework="pt") as file:
                file.keys()
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError, OSError) as error:
        return f"{path.name} cannot be read ({error})"
    return None
