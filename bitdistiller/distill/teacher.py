"""The teacher's side of distillation, computed once a data set: last hidden states and confidence.

A frozen teacher answers the same for the same sequence every time, so asking it again in every epoch and every run is
waste. Its logits would be large (49,152 numbers a token); the last hidden state they are made from is small (2 bytes x
hidden size) and exact, because in bf16 mixed precision the head reads it in bf16 anyway. One matrix product gives the
logits back.

For a large teacher that file is larger than memory, and takes hours: states go to disk batch by batch, and a call that
was killed goes on where the file ends.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import PreTrainedModel

from bitdistiller.assets import sha256_file
from bitdistiller.data.generate import padded, read_sequences
from bitdistiller.device import device, has_bf16
from bitdistiller.errors import UserError
from bitdistiller.models import LoadedModel, load_model, require_context
from bitdistiller.results import TeacherRecord

IGNORED = -100  # label of a position that has nothing to predict
_CHUNK = 512  # tokens whose logits are held at a time
_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class TeacherStates:
    """A data set with the teacher's answers: what training reads.

    Attributes:
        input_ids: (N, L), padded on the right.
        labels: (N, L), the token that follows each position, ``IGNORED`` where none does.
        attention: (N, L), True for real tokens.
        states: file of the teacher's last hidden states, (N, L, H).
        head: (V, H) output embedding, in the dtype of the states.
        gammas: the teacher's confidence, measured in the ways that ``config.Gamma`` names.
    """

    input_ids: Int[Tensor, "N L"]
    labels: Int[Tensor, "N L"]
    attention: Bool[Tensor, "N L"]
    states: Path
    head: Float[Tensor, "V H"]
    gammas: dict[str, float]
    teacher: str
    vocabulary: dict[str, int]


class DistillationDataset(Dataset):
    """Examples for the Trainer; hidden states are read from the file one example at a time."""

    def __init__(self, teacher: TeacherStates):
        self.teacher = teacher
        self._rows = safe_open(teacher.states, framework="pt").get_slice("states")

    def __len__(self) -> int:
        return len(self.teacher.input_ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {
            "input_ids": self.teacher.input_ids[index],
            "attention_mask": self.teacher.attention[index],
            "labels": self.teacher.labels[index],
            "teacher_states": self._rows[index],
        }


def cache_teacher(
    name: str, length: int, text: Path, folder: Path, weights: torch.dtype = torch.float32
) -> TeacherRecord:
    """Run teacher ``name`` over a training text and write its states to ``folder``.

    Args:
        length: tokens that every sequence is padded to.
        weights: in which its weights are held while it reads.

    Returns:
        The record that is written too: its confidence, measured in four ways, and where states and text come from.
    """
    teacher = load_model(name)
    require_context(teacher, length)
    teacher.model.to(device(), weights)
    rows = [sequence.input_ids for sequence in read_sequences(text)]
    _require_ids(teacher, rows, text)
    pad = teacher.tokenizer.pad_token_id
    ids, mask = padded(rows, pad, length)
    dtype = torch.bfloat16 if has_bf16() else torch.float32
    head = teacher.model.get_output_embeddings().weight.detach().to("cpu", dtype)
    identity = hashlib.sha256(f"{name} {weights} {sha256_file(text)} {length} {dtype}".encode()).hexdigest()[:12]
    unfinished = folder.with_suffix(f".{identity}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    write_states(teacher.model, ids, mask, dtype, unfinished)
    unfinished.replace(folder / "states.safetensors")
    with safe_open(folder / "states.safetensors", framework="pt") as file:
        gammas = confidence(file.get_slice("states"), head, ids, mask)
    save_file({"head": head.clone(), "input_ids": ids, "mask": mask}, folder / "data.safetensors")
    record = TeacherRecord(
        teacher=name,
        teacher_origin=teacher.origin,
        gammas=gammas,
        tokens=int(mask.sum()),
        padding=1 - mask.float().mean().item(),
        dtype=str(dtype),
        text_sha256=sha256_file(text),
    )
    record.write(folder / "teacher.json")
    (folder / "vocabulary.json").write_text(json.dumps(teacher.tokenizer.get_vocab(), sort_keys=True))
    return record


def read_teacher(folder: Path) -> TeacherStates:
    """What ``cache_teacher`` wrote."""
    if not (folder / "vocabulary.json").exists():
        raise UserError(f"{folder} holds no complete teacher cache; run `dvc repro` to make it")
    try:
        record = TeacherRecord.read(folder / "teacher.json")
        with safe_open(folder / "data.safetensors", framework="pt") as file:
            ids, mask, head = (file.get_tensor(name) for name in ("input_ids", "mask", "head"))
        safe_open(folder / "states.safetensors", framework="pt")
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{folder} is damaged ({error}); delete it and run `dvc repro`") from None
    return TeacherStates(
        ids, next_tokens(ids, mask), mask, folder / "states.safetensors", head, record.gammas, record.teacher,
        json.loads((folder / "vocabulary.json").read_text()),
    )  # fmt: skip


def write_states(
    model: PreTrainedModel, ids: Int[Tensor, "N L"], mask: Bool[Tensor, "N L"], dtype: torch.dtype, path: Path
) -> None:
    """Write the states that the output head reads as the safetensors entry ``states``, (N, L, H), batch by batch.

    Where ``path`` exists it is what an interrupted call for the same states left, and is completed.
    """
    rows = max(1, _BATCH_TOKENS // ids.shape[1])
    header, sequence = _header(ids.shape, model.get_output_embeddings().weight.shape[1], dtype)
    with open(path, "ab") as file:
        done = max(0, file.tell() - len(header)) // (rows * sequence)  # whole batches
        file.truncate(len(header) + done * rows * sequence if done else 0)
        if not done:
            file.write(header)
        starts = range(done * rows, len(ids), rows)
        for start in tqdm(starts, desc="teacher", unit="batch", initial=done, total=done + len(starts)):
            part = slice(start, start + rows)
            states = last_hidden_states(model, ids[part], mask[part]).to("cpu", dtype)
            file.write(states.contiguous().view(torch.uint8).numpy())


def _header(shape: torch.Size, width: int, dtype: torch.dtype) -> tuple[bytes, int]:
    """What a safetensors file of hidden states begins with, and the bytes of one sequence in it."""
    sequence = shape[1] * width * dtype.itemsize
    name = {torch.bfloat16: "BF16", torch.float32: "F32"}[dtype]
    entry = {"dtype": name, "shape": [*shape, width], "data_offsets": [0, shape[0] * sequence]}
    text = json.dumps({"states": entry}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, sequence


@torch.no_grad()
def last_hidden_states(
    model: PreTrainedModel, ids: Int[Tensor, "N L"], mask: Bool[Tensor, "N L"]
) -> Float[Tensor, "N L H"]:
    """The states that the output head reads, for every position, under bf16 autocast where it is native."""
    inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
    with torch.autocast(model.device.type, torch.bfloat16, enabled=has_bf16()):
        return model.base_model(**inputs, use_cache=False).last_hidden_state


def next_tokens(ids: Int[Tensor, "N L"], mask: Bool[Tensor, "N L"]) -> Int[Tensor, "N L"]:
    """The token after each position; ``IGNORED`` at the end of a sequence and in its padding."""
    labels = torch.full_like(ids, IGNORED)
    labels[:, :-1] = ids[:, 1:].masked_fill(~mask[:, 1:], IGNORED)
    return labels


@torch.no_grad()
def confidence(
    states, head: Float[Tensor, "V H"], ids: Int[Tensor, "N L"], mask: Bool[Tensor, "N L"]
) -> dict[str, float]:
    """Gamma, the teacher's mean confidence in the next token, measured in four ways (``config.Gamma``).

    BitDistiller, section 3.3, defines it by the probability of the label; its released code takes the greatest
    probability instead, and averages over padded positions too, which the follow-up (section 6.4.2) masks out. With
    padding, the label of a padded position is the padding token.

    Args:
        states: (N, L, H), a tensor or a slice of a safetensors file, of which a part is read at a time.
    """
    real = mask[:, 1:].flatten()
    totals = torch.zeros(2, 2, dtype=torch.float64)  # label, max; real, padded
    for part, label, counts in zip(
        _positions(states, len(ids)), ids[:, 1:].flatten().split(_CHUNK), real.split(_CHUNK), strict=True
    ):
        probability = (part @ head.T).float().softmax(-1)
        both = torch.stack([probability.gather(-1, label.unsqueeze(-1)).squeeze(-1), probability.amax(-1)]).double()
        totals += torch.stack([both[:, counts].sum(-1), both[:, ~counts].sum(-1)], dim=1)
    label, largest = totals.tolist()
    count = int(real.sum())
    return {
        "label": label[0] / count,
        "max": largest[0] / count,
        "label-with-padding": sum(label) / len(real),
        "max-with-padding": sum(largest) / len(real),
    }


def _positions(states, sequences: int) -> Iterator[Float[Tensor, "n H"]]:
    """All positions that have a next one, ``_CHUNK`` at a time."""
    waiting = states[:0].flatten(0, 1)
    for start in range(0, sequences, 64):
        waiting = torch.cat([waiting, states[start : start + 64][:, :-1].flatten(0, 1)])
        *chunks, waiting = waiting.split(_CHUNK)
        yield from chunks
    yield waiting


def _require_ids(teacher: LoadedModel, rows: list[list[int]], text: Path) -> None:
    entries = teacher.model.get_input_embeddings().weight.shape[0]
    if (largest := max(max(row) for row in rows)) >= entries:
        raise UserError(
            f"{text} has the token id {largest}, and teacher {teacher.name} knows {entries}: the text was made with "
            "another tokenizer; choose a generator with the teacher's"
        )
