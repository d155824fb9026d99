r"""What a stage asks of a processor: matrix products by their size, and passes over memory by what they pass over.

Matrix products dominate large models: :math:`2 \cdot rows \cdot in \cdot out` FLOPs each, three of them for a layer
that is trained (its output, and the gradients of its input and of its weight), once more the first under activation
checkpointing. Attention takes :math:`4 \cdot d` FLOPs a head and pair of positions, masked ones included, as all
kernels but a few compute them; its backward pass takes twice that, and half as much again where a fused kernel forms
the scores anew. Beside them stands what costs time and no FLOPs worth counting: norms, gates and casts (bytes of
activations), rounding of all weights in every forward pass, the update of AdamW, a dozen passes over the logits, and
calls, which are all that counts for a single token.

Quantities add up, so a stage is a sum over its passes and a scale the sum over its stages. A machine knows what each
of them takes (``machine``). Tokens are counted with padding, since padding is computed too.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from bitdistiller.plan.architecture import Architecture
from bitdistiller.plan.memory import activation_bytes

Attention = Literal["plain", "fused", "cached"]
Product = tuple[int, int, int]  # rows, in, out

PASSES = {
    "plain attention": "FLOPs of attention from whole score matrices, forward",
    "plain attention, backward": "the same, backward",
    "fused attention": "FLOPs of attention in one kernel, forward",
    "fused attention, backward": "the same, backward",
    "cached attention": "FLOPs of one query a sequence that meets cached keys and values",
    "fp32 products": "FLOPs of matrix products in fp32: the clipping search and its calibration pass",
    "activations": "bytes of activations formed",
    "activations, backward": "bytes of activations gone through again",
    "rounded weights": "weights fake-quantized once",
    "searched weights": "weights times candidates of the clipping search",
    "summarized weights": "weights described by zeros, entropy, error and histograms",
    "updated parameters": "parameters stepped by AdamW, gradients cleared and clipped",
    "loss logits": "logits of student and teacher turned into loss and gradient",
    "scored logits": "logits read for the probability of a token",
    "compared logits": "logits of a student and its original turned into a divergence",
    "sampled logits": "logits turned into a random token",
    "evaluated logits": "logits of a validation batch turned into cross-entropy, whole",
    "moved bytes": "bytes copied in memory: caches of keys and values, casts of weights",
    "stored bytes": "bytes written to or read from files, and hashed",
    "layer calls": "layers run forward, whatever their size",
    "layer steps": "layers run forward and backward, whatever their size",
    "written tokens": "steps of the generation loop",
    "tokenized characters": "characters of text read and tokenized",
    "stages": "starts of a process with its imports",
    "scorings": "the imports that scoring tasks needs beside them",
}
_FLOPS = (
    "plain attention", "plain attention, backward", "fused attention", "fused attention, backward",
    "cached attention", "fp32 products",
)  # fmt: skip

CAST = 3  # moved bytes of a number cast between 16 and 32 bits: it reads and writes 6 where a copy of 4 bytes takes 8
CANDIDATES = {"asymmetric": 100, "symmetric": 10, "none": 0}


@dataclass(frozen=True)
class Work:
    """Matrix products by (rows, in, out) and amounts of ``PASSES``; both add and multiply."""

    products: Mapping[Product, float] = field(default_factory=dict)
    passes: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: "Work") -> "Work":
        return Work(_sum(self.products, other.products), _sum(self.passes, other.passes))

    def __mul__(self, times: float) -> "Work":
        return Work(
            {key: count * times for key, count in self.products.items()},
            {key: amount * times for key, amount in self.passes.items()},
        )

    @property
    def flops(self) -> float:
        """Floating-point operations in matrix products, attention included."""
        dense = sum(2 * rows * inner * out * count for (rows, inner, out), count in self.products.items())
        return dense + sum(self.passes.get(name, 0) for name in _FLOPS)


NOTHING = Work()


def _sum(one: Mapping, other: Mapping) -> dict:
    total = Counter(one)
    total.update(other)
    return dict(total)


def total(parts) -> Work:
    """Sum of works."""
    return sum(parts, NOTHING)


def passes(**amounts: float) -> Work:
    """Work of passes alone; ``loss_logits`` stands for "loss logits"."""
    return Work(passes={name.replace("_", " "): amount for name, amount in amounts.items()})


def forward(
    shape: Architecture, rows: int, length: int, context: int | None = None, attention: Attention = "fused"
) -> Work:
    """One pass of ``rows`` sequences of ``length`` tokens up to the last hidden states.

    Args:
        context: keys that each query meets; its own sequence if None.
    """
    tokens = rows * length
    pairs = shape.layers * shape.heads * tokens * (context or length)
    return Work(
        {(tokens, *matrix): count for matrix, count in shape.matrices},
        {
            f"{attention} attention": 4 * shape.head_size * pairs,
            "activations": tokens * activation_bytes(shape),
            "layer calls": shape.layers,
        },
    )


def backward(shape: Architecture, rows: int, length: int, attention: Attention) -> Work:
    """The way back from the gradient of the last hidden states to that of every parameter below the head."""
    tokens = rows * length
    pairs = shape.layers * shape.heads * tokens * length
    per_pair = {"plain": 8, "fused": 10}[attention]
    return Work(
        dict(_sum({(tokens, out, inner): count for (inner, out), count in shape.matrices},
                  {(inner, tokens, out): count for (inner, out), count in shape.matrices})),
        {
            f"{attention} attention, backward": per_pair * shape.head_size * pairs,
            "activations, backward": tokens * activation_bytes(shape),
            "moved bytes": CAST * shape.quantizable,
            "layer steps": shape.layers,
        },
    )  # fmt: skip


def cast(shape: Architecture) -> Work:
    """Weights in fp32 cast for 16-bit products, once in every autocast context."""
    return passes(moved_bytes=CAST * shape.parameters)


def head(shape: Architecture, tokens: float, width: int | None = None) -> Work:
    """Logits of ``tokens`` positions, in chunks of ``width`` of them (``distill.chunked`` takes 1,024)."""
    chunk = min(width or 1024, max(1, round(tokens)))
    return Work({(chunk, shape.hidden, shape.vocabulary): tokens / chunk})


def distillation_loss(student: Architecture, teacher: Architecture, tokens: float) -> Work:
    """Logits of both, loss and gradient, gradients of hidden states and of the head (``distill.chunked``)."""
    chunk = min(1024, max(1, round(tokens)))
    own = {(chunk, student.hidden, student.vocabulary): 1, (chunk, student.vocabulary, student.hidden): 1}
    products = _sum(own, {(student.vocabulary, chunk, student.hidden): 1})
    products = _sum(products, {(chunk, teacher.hidden, teacher.vocabulary): 1})
    return Work(products) * (tokens / chunk) + passes(loss_logits=tokens * student.vocabulary)


def training_pass(
    student: Architecture,
    teacher: Architecture,
    rows: int,
    length: int,
    filled: float,
    attention: Attention,
    checkpointing: bool,
) -> Work:
    """Forward and backward of one micro-batch of a student, with fake quantization and loss.

    Args:
        filled: share of positions that are no padding, which the loss leaves out.
        checkpointing: activations are computed a second time on the way back.
    """
    once = forward(student, rows, length, attention=attention) + passes(rounded_weights=student.quantizable)
    work = once + backward(student, rows, length, attention)
    if checkpointing:
        work += once
    return work + distillation_loss(student, teacher, rows * length * filled)


def update(shape: Architecture) -> Work:
    """What follows the last backward pass of a step: clipping by norm, AdamW, clearing gradients."""
    return passes(updated_parameters=shape.parameters)


def writing(shape: Architecture, rows: int, prompt: int, new: int, shared: int = 0) -> Work:
    """``rows`` sequences continued by ``new`` tokens each, with cached keys and values.

    Args:
        prompt: tokens of each sequence before the first new one, without ``shared``.
        shared: tokens before them that all sequences have in common, computed once.
    """
    start = forward(shape, rows, prompt, prompt + shared)
    if shared:
        start += forward(shape, 1, shared)
    context = shared + prompt + new / 2
    step = forward(shape, rows, 1, round(context), "cached") + head(shape, rows, rows)
    cached = 2 * shape.layers * shape.kv_heads * shape.head_size * 2 * rows * (prompt + new / 2)
    step += passes(sampled_logits=rows * shape.vocabulary, moved_bytes=cached, written_tokens=1)
    return start + step * new


def search(shape: Architecture, clip: str, tokens: int, length: int, group_size: int) -> Work:
    """A clipping search over all layers but queries and keys, and the calibration pass in fp32 before it."""
    if clip == "none":
        return NOTHING
    calibration = forward(shape, -(-tokens // length), length)
    candidates = CANDIDATES[clip] * (shape.quantizable - shape.unclipped)
    fp32 = Work(calibration.products).flops + 2 * group_size * candidates
    return Work(passes=_sum(calibration.passes, {"fp32 products": fp32, "searched weights": candidates}))
