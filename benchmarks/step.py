"""Our distillation step beside the obvious one and beside the floor, measured side by side in one process.

* ours: cached teacher states, fake quantization, chunked CAKLD (what ``bitdistiller train`` runs);
* obvious: teacher forward in every step, both logits whole in fp32, KL by autograd, the same fake quantization;
* obvious_fp32: the same without autocast, so that matrix products are in fp32 too;
* floor: teacher forward and a plain cross-entropy step of an unquantized student.

Each is forward, backward and AdamW update over the same tokens, under the same autocast where nothing else is said.
They take turns, so that whatever else the machine does hits all alike; ratios of medians are the result. Memory is the
highest resident size that a step reaches above what the process held before it. Run with ``make benchmark``.
"""

import argparse
import copy
import json
import statistics
from pathlib import Path

import torch
from measure import measured
from torch.nn import functional as F

from bitdistiller.device import has_bf16
from bitdistiller.distill.chunked import chunked_loss
from bitdistiller.distill.losses import cakld
from bitdistiller.distill.objective import Objective
from bitdistiller.distill.trainer import choose_attention
from bitdistiller.models import load_model
from bitdistiller.provenance import environment
from bitdistiller.quant import make_format, quantize_model

GAMMA = 0.7
OBJECTIVE = Objective("cakld", GAMMA)


def autocast(enabled: bool = True):
    """What training runs under."""
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled and has_bf16())


class Steps:
    """The steps on one batch of ``rows`` sequences of ``length`` tokens."""

    def __init__(self, name: str, rows: int, length: int):
        self.teacher = load_model(name).model
        self.plain = copy.deepcopy(self.teacher)
        self.student = copy.deepcopy(self.teacher)
        quantize_model(self.student, make_format("int-asym", bits=2, group_size=64))
        self.lean = copy.deepcopy(self.student)
        choose_attention(self.lean, length)
        self.ids = torch.randint(2, self.teacher.config.vocab_size, (rows, length))
        self.labels = self.ids.flatten()  # CAKLD asks for none
        dtype = torch.bfloat16 if has_bf16() else torch.float32
        with torch.no_grad(), autocast():
            self.states = self.teacher.base_model(self.ids, use_cache=False).last_hidden_state.to(dtype).flatten(0, 1)
        self.head = self.teacher.get_output_embeddings().weight.detach().to(dtype)
        self.optimizers = {
            m: torch.optim.AdamW(m.parameters(), lr=1e-6, fused=True) for m in (self.lean, self.student, self.plain)
        }

    def update(self, model, loss) -> None:
        loss.backward()
        self.optimizers[model].step()
        self.optimizers[model].zero_grad()

    def ours(self) -> None:
        with autocast():
            hidden = self.lean.base_model(self.ids, use_cache=False).last_hidden_state.flatten(0, 1)
        head = self.lean.get_output_embeddings().weight
        self.update(self.lean, chunked_loss(hidden, head, self.states, self.head, self.labels, OBJECTIVE) / len(hidden))

    def obvious(self, mixed: bool = True) -> None:
        with torch.no_grad(), autocast(mixed):
            teacher_logits = self.teacher(self.ids, use_cache=False).logits.float()
        with autocast(mixed):
            student_logits = self.student(self.ids, use_cache=False).logits.float()
        self.update(self.student, cakld(student_logits, teacher_logits, gamma=GAMMA))

    def obvious_fp32(self) -> None:
        self.obvious(mixed=False)

    def floor(self) -> None:
        with torch.no_grad(), autocast():
            self.teacher(self.ids, use_cache=False)
        with autocast():
            logits = self.plain(self.ids, use_cache=False).logits.float()
        self.update(self.plain, F.cross_entropy(logits[:, :-1].flatten(0, 1), self.ids[:, 1:].flatten()))


def main() -> None:
    """Measure, print, and write the JSON that documents read."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/step.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    steps = Steps(arguments.model, arguments.tokens // arguments.length, arguments.length)
    names = ("ours", "obvious", "obvious_fp32", "floor")
    for name in names:  # the first call allocates optimizer states
        getattr(steps, name)()
    found = {name: [] for name in names}
    for _ in range(arguments.repeats):
        for name in names:
            found[name].append(measured(getattr(steps, name)))
    seconds = {name: statistics.median(s for s, _ in runs) for name, runs in found.items()}
    memory = {name: max(m for _, m in runs) for name, runs in found.items()}
    result = {
        "model": arguments.model,
        "tokens": arguments.tokens,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "memory_mib": {name: round(value / 2**20) for name, value in memory.items()},
        **{f"ours_over_{name}": round(seconds["ours"] / seconds[name], 3) for name in names[1:]},
        "environment": environment().model_dump(),
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "environment"}, indent=2))


if __name__ == "__main__":
    main()
