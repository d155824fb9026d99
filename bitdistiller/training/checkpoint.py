"""Files of a checkpoint: tensors in safetensors, everything else in JSON, and a list of checksums that completes it.

Loading one can run no code. The list is written last and in one step, so that a checkpoint without it was interrupted;
and one in which a disk lost a bit, or a full one cut a file short, does not match it. The same files are written
whatever number of processes trained, with whole tensors under their parameter's name: a run may go on with another
number, or with its weights sharded where they were not.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitdistiller.assets import sha256_file

_LIST = "complete.json"


def complete(folder: Path) -> None:
    """Declare a checkpoint finished: from here on ``damage`` holds it to what it is now."""
    sums = {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.is_file()}
    staging = folder / "complete.tmp"
    staging.write_text(json.dumps(sums, indent=1))
    staging.replace(folder / _LIST)


def is_complete(folder: Path) -> bool:
    """Whether the checkpoint was written to its end."""
    return (folder / _LIST).exists()


def damage(folder: Path) -> str | None:
    """What is wrong with a finished checkpoint, if anything is."""
    try:
        sums = json.loads((folder / _LIST).read_text())
        for name, expected in sums.items():
            if sha256_file(folder / name) != expected:
                return f"{name} is not what was written"
    except (OSError, ValueError, AttributeError) as error:
        return f"it cannot be read ({error})"
    return None


def write_optimizer(state: dict, folder: Path) -> None:
    """Write an optimizer's state whose keys are parameter names, as torch's ``get_optimizer_state_dict`` gives it."""
    slots = {f"{name}.{key}": value for name, slot in state["state"].items() for key, value in slot.items()}
    save_file(
        {name: torch.as_tensor(value).contiguous() for name, value in slots.items()}, folder / "optimizer.safetensors"
    )
    (folder / "optimizer.json").write_text(json.dumps(state["param_groups"]))


def read_optimizer(folder: Path) -> dict:
    """What ``write_optimizer`` wrote."""
    slots: dict[str, dict[str, Tensor]] = {}
    for place, value in load_file(folder / "optimizer.safetensors").items():
        name, _, key = place.rpartition(".")
        slots.setdefault(name, {})[key] = value
    return {"state": slots, "param_groups": json.loads((folder / "optimizer.json").read_text())}


def write_scheduler(state: dict, folder: Path) -> None:
    """Write a learning rate schedule's state, without the functions in it."""
    plain = {key: value for key, value in state.items() if _is_plain(value)}
    (folder / "scheduler.json").write_text(json.dumps(plain))


def read_scheduler(folder: Path) -> dict:
    """What ``write_scheduler`` wrote."""
    return json.loads((folder / "scheduler.json").read_text())


def write_random(folder: Path) -> None:
    """Write the state of every random generator of this process."""
    _, keys, position, has_gauss, cached = np.random.get_state()
    tensors = {"cpu": torch.random.get_rng_state(), "numpy": torch.from_numpy(keys.astype(np.int64))}
    if torch.cuda.is_available():
        tensors |= {f"cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    save_file(tensors, folder / "rng.safetensors")
    version, words, gauss = random.getstate()
    plain = {"python": [version, list(words), gauss], "numpy": [position, has_gauss, cached]}
    (folder / "rng.json").write_text(json.dumps(plain))


def read_random(folder: Path) -> None:
    """Put every random generator into the state that ``write_random`` wrote; GPUs that were not there keep theirs."""
    tensors, plain = load_file(folder / "rng.safetensors"), json.loads((folder / "rng.json").read_text())
    version, words, gauss = plain["python"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(("MT19937", tensors["numpy"].numpy().astype(np.uint32), *plain["numpy"]))
    torch.random.set_rng_state(tensors["cpu"])
    for index in range(torch.cuda.device_count()):
        if f"cuda.{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda.{index}"], index)


def read_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The model's tensors by name, from however many files they lie in."""
    for path in sorted(folder.glob("model*.safetensors")):
        yield from load_file(path).items()


def _is_plain(value) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    return value is None or isinstance(value, bool | int | float | str)
