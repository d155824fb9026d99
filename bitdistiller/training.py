"""A Hugging Face ``Trainer`` whose checkpoints hold no pickles.

The stock Trainer writes optimizer, scheduler and random state with ``torch.save``. Here tensors go into
safetensors and everything else into JSON, so that loading a checkpoint can run no code, and a resumed run
continues bit for bit. Every checkpoint carries the fingerprint of the run that wrote it; a checkpoint of other
parameters is refused instead of silently continued.
"""

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from bitdistiller.device import has_bf16
from bitdistiller.errors import UserError

_FINGERPRINT_FILE = "fingerprint.json"
_COMPLETE_FILE = "trainer_state.json"  # the last file a checkpoint gets: without it the write was interrupted


def fingerprint(parameters: dict) -> str:
    """Hash that names a run by everything that decides its weights."""
    return hashlib.sha256(json.dumps(parameters, sort_keys=True, default=str).encode()).hexdigest()[:16]


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
    """Trainer with safetensors + JSON checkpoints that belong to one named run.

    Args:
        run_fingerprint: ``fingerprint`` of the run's parameters, stored in every checkpoint.
    """

    def __init__(self, *args, run_fingerprint: str, **kwargs):
        super().__init__(*args, **kwargs)
        self.run_fingerprint = run_fingerprint

    def last_checkpoint(self) -> str | None:
        """Newest complete checkpoint of this very run, or None.

        Raises:
            UserError: the newest checkpoint belongs to a run with other parameters.
        """
        folder = Path(self.args.output_dir)
        if not folder.is_dir():
            return None
        for checkpoint in folder.glob("checkpoint-*"):
            if not (checkpoint / _COMPLETE_FILE).exists():
                checkpoint.rename(checkpoint.with_name(f"interrupted-{checkpoint.name}"))
        newest = get_last_checkpoint(str(folder))
        if newest is None:
            return None
        found = json.loads((Path(newest) / _FINGERPRINT_FILE).read_text())["fingerprint"]
        if found != self.run_fingerprint:
            raise UserError(
                f"{newest} was written by a run with other parameters ({found}, this run is {self.run_fingerprint}); "
                f"delete {folder} to start over"
            )
        return newest

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        self.accelerator.unwrap_model(self.model).save_pretrained(folder, state_dict=state_dict)
        (folder / _FINGERPRINT_FILE).write_text(json.dumps({"fingerprint": self.run_fingerprint}))

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
