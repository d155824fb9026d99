r"""What a device holds at its fullest, by part.

A training step is fullest either when the loss is formed (all activations, and of the gradients only the head's) or
when the optimizer steps (all gradients and no activations); validation, whose logits are whole, may hold more than
both. Parts are those of the fullest moment, in bytes:

* **masters**: latent weights and all other parameters in fp32, 4 a parameter;
* **weights**: 16-bit copies that matrix products read, 2 a parameter: rounded weights, kept for the backward pass;
* **gradients**, fp32, 4 a parameter; DDP has as much again in its buckets;
* **optimizer**: two moments of AdamW in fp32, 8 a parameter;
* **teacher**: its head in 16 bits and the hidden states of one micro-batch;
* **activations** and **logits**: below.

Activations of one layer and token in mixed precision are what autograd saves: two norms keep their input and their
normalised value in fp32 (16 H bytes; ``LayerNorm`` the input alone), every Linear its input in 16 bits, since
autocast casts for each anew; queries, keys and values are kept in 16 bits as attention reads them, keys and values
repeated for every head; the MLP's activation keeps its inputs and outputs. Plain attention keeps its scores besides,
6 bytes a head and pair of positions. On the way back a layer forms about as much again for its gradients, twice.
Under activation checkpointing a layer keeps its input alone (4 H), and one layer at a time all of it.

Fully sharded, N devices hold an N-th of masters, gradients and optimizer state each, and two layers gathered (the one
that computes and the next), in fp32, as fake quantization reads latent weights; embedding and head are gathered too.
"""

from dataclasses import dataclass, field
from typing import Literal

from bitdistiller.plan.architecture import Architecture

Sharding = Literal["none", "full"]
PARTS = ("masters", "weights", "gradients", "optimizer", "teacher", "activations", "logits", "cache", "runtime")
CHUNK = 1024  # tokens whose logits are held (distill.chunked)
_BLOCK = 2**21 * 4 * 6  # fp32 temporaries of a block of logits


@dataclass(frozen=True)
class Memory:
    """Bytes on one device by part, and bytes of host memory beside it that grow with the data."""

    parts: dict[str, float] = field(default_factory=dict)
    host: float = 0

    @property
    def total(self) -> float:
        """Bytes on the device."""
        return sum(self.parts.values())

    def on_host(self, runtime: float) -> "Memory":
        """The same where the device is the host: one memory, with what the process holds before it begins."""
        teacher = self.parts.get("teacher", 0) + self.host
        return Memory({**self.parts, "teacher": teacher, "runtime": runtime})


def activation_bytes(shape: Architecture) -> int:
    """Bytes a token that the layers of a training pass keep, attention scores aside."""
    inputs = sum(2 * inner * count for (inner, _), count in shape.matrices)
    heads = 3 * 2 * shape.heads * shape.head_size
    mlp = (6 if shape.gated else 2) * shape.inner
    norms = (8 if shape.layer_norm else 16) * shape.hidden
    return inputs + shape.layers * (norms + heads + mlp)


def score_bytes(shape: Architecture, rows: int, length: int) -> int:
    """Bytes that plain attention keeps of its scores, in all layers: a softmax in fp32 and its copy in 16 bits."""
    return 6 * shape.layers * shape.heads * rows * length * length


def fullest(*moments: dict[str, float]) -> dict[str, float]:
    """The moment with most bytes."""
    return max(moments, key=lambda parts: sum(parts.values()))


def training(
    student: Architecture,
    teacher: Architecture,
    rows: int,
    length: int,
    micro_batches: int,
    plain: bool,
    checkpointing: bool,
    devices: int = 1,
    sharding: Sharding = "none",
) -> Memory:
    """Memory of one device while a student is trained.

    Args:
        rows: sequences of one micro-batch on this device.
        micro_batches: forward passes of a step on this device; above 1 gradients are held during them.
        plain: attention keeps its scores.
    """
    tokens = rows * length
    share = devices if sharding == "full" else 1
    embedding = student.head * (1 if student.tied else 2)
    gathered = 4 * (2 * student.layer_parameters + embedding) if share > 1 else 0
    state = {
        "masters": 4 * student.parameters / share + gathered,
        "optimizer": 8 * student.parameters / share,
        "teacher": 2 * teacher.head + 2 * tokens * teacher.hidden,
    }
    kept = tokens * activation_bytes(student) + (score_bytes(student, rows, length) if plain else 0)
    if checkpointing:
        kept = 4 * tokens * student.hidden * student.layers + kept / student.layers
    buckets = 4 * student.parameters if devices > 1 and sharding == "none" else 0
    gradients = 4 * student.parameters / share
    chunk = min(CHUNK, tokens)
    loss = {
        **state,
        "weights": 2 * (student.quantizable / (student.layers if checkpointing or share > 1 else 1) + student.head),
        "gradients": buckets + (gradients if micro_batches > 1 else 0),
        "activations": kept + 2 * tokens * activation_bytes(student) / student.layers + 8 * tokens * student.hidden,
        "logits": 4 * student.head + 2 * 2 * chunk * student.vocabulary + _BLOCK,
    }
    step = {**state, "gradients": gradients + buckets}
    # of a validation batch: in 16 bits, in fp32, and log-probabilities
    validation = {**state, "weights": 2 * student.head, "logits": 10 * tokens * student.vocabulary}
    return Memory(fullest(loss, step, validation))


def scoring(shape: Architecture, tokens: int, models: int = 1, logits: int = 2**22, low: bool = False) -> Memory:
    """Models in fp32 with 16-bit copies of their weights, and one layer's activations of ``tokens`` tokens.

    Args:
        logits: how many are held at a time (``evaluate.likelihood``).
        low: weights are held in 16 bits alone.
    """
    return Memory(
        {
            **({} if low else {"masters": 4 * shape.parameters * models}),
            "weights": 2 * shape.parameters * models,
            "activations": tokens * (activation_bytes(shape) / shape.layers + 8 * shape.hidden),
            "logits": (2 + 4) * models * logits,
        }
    )


def caching(shape: Architecture, batch: int, low: bool = False) -> Memory:
    """Stage `teacher`, whose states go to disk batch by batch."""
    return scoring(shape, batch, logits=512 * shape.vocabulary, low=low)


def generating(shape: Architecture, rows: int, prompt: int, length: int, low: bool) -> Memory:
    """A model in 16 bits (or in fp32 with 16-bit copies if not ``low``) that writes, with cached keys and values."""
    cached = 2 * shape.layers * shape.kv_heads * shape.head_size * 2 * rows * length
    weights = {"weights": 2 * shape.parameters}
    return Memory(
        {
            **(weights if low else {"masters": 4 * shape.parameters, **weights}),
            "cache": cached * (1 + 1 / shape.layers),
            "activations": rows * prompt * (activation_bytes(shape) / shape.layers + 8 * shape.hidden),
            "logits": rows * shape.vocabulary * (2 + 4 + 4 + 4),
        }
    )


def searching(shape: Architecture, tokens: int, length: int) -> Memory:
    """Stage `clip`: the model in fp32 and the inputs of all its layers over the calibration tokens."""
    padded = -(-tokens // length) * length
    inputs = 4 * padded * shape.layers * (2 * shape.hidden + shape.heads * shape.head_size + shape.inner)
    largest = max(inner * out for (inner, out), _ in shape.matrices)
    return Memory({"masters": 4 * shape.parameters, "activations": inputs, "weights": 4 * largest})
