"""How fast this machine is: a benchmark of seconds, of the functions that a pipeline spends its time in.

Everything is measured alone, at one or two sizes, and per unit: an operation of matrix products, a byte of
activations, a weight that is rounded, a logit of the loss. No run of the pipeline is looked at, so that predictions
can be compared with runs afterwards (``benchmarks/plan.py``). Each number is the best of a few calls, in CPU time of
one thread or wall time of several: other programs can only make a call slower. What a whole layer takes beyond its
products, attention and rounding is laid to its activations. The result is kept in ``artifacts/machine-KEY.json``;
delete it to measure again.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from bitdistiller.assets import sha256_file
from bitdistiller.data.blocks import encode
from bitdistiller.device import has_bf16
from bitdistiller.distill.chunked import chunked_loss
from bitdistiller.distill.objective import Objective
from bitdistiller.evaluate.likelihood import inference, target_log_probs
from bitdistiller.evaluate.reference import compare_with_original
from bitdistiller.evaluate.weights import summarize_weights
from bitdistiller.models.micro import WEIGHTS_DIR
from bitdistiller.plan.architecture import Architecture, shape_of
from bitdistiller.plan.machine import Host
from bitdistiller.plan.work import CANDIDATES, Work, backward, forward, head
from bitdistiller.provenance import environment
from bitdistiller.quant import fake_quantize, make_format, quantize_model, search_clip
from bitdistiller.results import Record

_LEAST = 0.06  # seconds that a measurement is repeated for
_SIZES = (1, 8, 64, 512)  # least sizes of products
_FORMAT = {"name": "int-asym", "bits": 2, "group_size": 64}
_ROWS, _LENGTH = 8, 128  # of the layer that is measured
_VOCABULARY = 8192


class Calibration(Record):
    """Rates of one machine: see ``machine.Host``; ``machine`` and ``threads`` say whose."""

    machine: str
    threads: int
    rates: list[tuple[int, float]]
    each: dict[str, float]
    runtime: float

    def host(self) -> Host:
        """The machine that turns work into seconds."""
        return Host(tuple(self.rates), self.each, self.runtime)


@dataclass(frozen=True)
class _Clock:
    """Best time of a call: CPU time where one thread works, so that other programs do not count."""

    threads: int

    def best(self, call: Callable[[], object], least: float = _LEAST) -> float:
        now = time.process_time if self.threads == 1 else time.perf_counter
        call()
        found, began = [], time.perf_counter()
        while len(found) < 3 or time.perf_counter() - began < least:
            start = now()
            call()
            found.append(now() - start)
        return min(found)


def calibration(threads: int, folder: Path) -> Calibration:
    """The rates of this machine on ``threads`` threads, measured if ``folder`` does not hold them yet."""
    surroundings = environment()
    identity = [surroundings.machine, surroundings.cores, threads, surroundings.versions["torch"], _sources()]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    path = folder / f"machine-{key}.json"
    if path.exists():
        return Calibration.read(path)
    found = measure(threads, surroundings.machine)
    found.write(path)
    return found


def _sources() -> str:
    """A measurement is of this code: another version measures anew."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def measure(threads: int, machine: str) -> Calibration:
    """Run the benchmark; a few seconds."""
    before, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    clock, each = _Clock(threads), {}
    try:
        rates = [(size, _product_rate(clock, size)) for size in _SIZES]
        steps = [_memory, _fp32, _attention, _quantizer, _optimizer, _logits, _files, _text, _layers, _generation]
        for step in tqdm(steps, desc="measuring this machine", unit="part", leave=False):
            each |= step(clock, Host(tuple(rates), each, 0))
    finally:
        torch.set_num_threads(before)
        torch.set_rng_state(state)
    starts, runtime = _start(threads)
    return Calibration(machine=machine, threads=threads, rates=rates, each={**each, **starts}, runtime=runtime)


def _low() -> torch.dtype:
    return torch.bfloat16 if has_bf16() else torch.float32


def _product_rate(clock: _Clock, size: int) -> float:
    """FLOP/s of products whose least size is ``size``, as a Linear of width 1,024 makes them."""
    x, w = torch.randn(size, 1024).to(_low()), torch.randn(1024, 1024).to(_low())
    return 2 * size * 1024 * 1024 / clock.best(lambda: F.linear(x, w))


def _fp32(clock: _Clock, host: Host) -> dict[str, float]:
    x, w = torch.randn(512, 512), torch.randn(512, 512)
    return {"fp32 products": clock.best(lambda: F.linear(x, w)) / (2 * 512**3)}


def _attention(clock: _Clock, host: Host) -> dict[str, float]:
    """Seconds a FLOP of attention, whole and in one kernel, as transformers calls both under autocast."""
    heads, size = 8, 64
    q, k, v = (torch.randn(_ROWS, heads, _LENGTH, size, requires_grad=True) for _ in range(3))
    causal = torch.full((_LENGTH, _LENGTH), -1e9).triu(1).expand(_ROWS, 1, -1, -1)
    allowed = causal == 0

    def plain() -> torch.Tensor:
        scores = q @ k.transpose(2, 3) * size**-0.5 + causal
        return scores.softmax(dim=-1, dtype=torch.float32) @ v

    def fused() -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)

    flops = 4 * size * heads * _ROWS * _LENGTH**2
    found = {}
    for name, function, back in (("plain", plain, 2), ("fused", fused, 2.5)):

        def there(function=function):
            with torch.no_grad(), _autocast():
                return function()

        def both(function=function):
            with _autocast():
                out = function()
            out.sum().backward()

        one, two = clock.best(there), clock.best(both)
        found |= {f"{name} attention": one / flops, f"{name} attention, backward": max(two - one, 0) / (back * flops)}
    last, keys, values = (torch.randn(64, heads, length, size).to(_low()) for length in (1, _LENGTH, _LENGTH))
    one = clock.best(lambda: F.scaled_dot_product_attention(last, keys, values))
    return {**found, "cached attention": one / (4 * last.numel() * _LENGTH)}


def _autocast():
    return torch.autocast("cpu", torch.bfloat16, enabled=has_bf16())


def _quantizer(clock: _Clock, host: Host) -> dict[str, float]:
    w, x = torch.randn(512, 1024) * 0.02, torch.randn(128, 512)
    fmt = make_format(**_FORMAT)
    rounded = clock.best(lambda: fake_quantize(w, fmt).to(_low())) / w.numel()
    part = w[:, :512].contiguous()  # as many weights as the search works on at a time
    candidates = CANDIDATES["asymmetric"] * part.numel()
    products = 2 * _FORMAT["group_size"] * candidates * host.each["fp32 products"]
    searched = max(clock.best(lambda: search_clip(part, x, fmt), 8 * _LEAST) - products, 0) / candidates
    return {"rounded weights": rounded, "searched weights": searched}


def _optimizer(clock: _Clock, host: Host) -> dict[str, float]:
    weight = torch.nn.Parameter(torch.zeros(2**23))
    optimizer = torch.optim.AdamW([weight], lr=1e-5, fused=True)

    def step() -> None:
        weight.grad = torch.ones_like(weight)
        torch.nn.utils.clip_grad_norm_([weight], 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return {"updated parameters": clock.best(step) / weight.numel()}


def _logits(clock: _Clock, host: Host) -> dict[str, float]:
    """Seconds a logit of everything that is done with logits; hidden states are narrow, so that products are small."""
    tokens, width = 512, 16
    hidden, weight = torch.randn(tokens, width, requires_grad=True), torch.randn(_VOCABULARY, width, requires_grad=True)
    states, teacher = (torch.randn(n, width).to(_low()) for n in (tokens, _VOCABULARY))
    labels, objective = torch.randint(_VOCABULARY, (tokens,)), Objective("cakld", 0.7)
    count = tokens * _VOCABULARY

    def narrow(products: int) -> float:
        return products * 2 * width * count / host.rate(tokens, width, _VOCABULARY)

    def loss() -> None:
        chunked_loss(hidden, weight, states, teacher, labels, objective).backward()

    model = _llama(layers=1, width=width)
    with inference(model), _autocast():
        scored = clock.best(lambda: target_log_probs(model, hidden, labels))
        compared = clock.best(lambda: compare_with_original(model, hidden, model, hidden, labels))
    few = torch.randn(64, _VOCABULARY).to(_low())
    sampled = clock.best(lambda: torch.multinomial((few.float() / 0.7).softmax(-1), 1)) / few.numel()
    whole = (hidden.detach() @ weight.detach().T).to(_low())
    return {
        "loss logits": max(clock.best(loss) - narrow(4), 0) / count,
        "scored logits": max(scored - narrow(1), 0) / count,
        "compared logits": max(compared - narrow(2), 0) / count,
        "sampled logits": sampled,
        "evaluated logits": clock.best(lambda: F.cross_entropy(whole.float(), labels)) / count,
    }


def _memory(clock: _Clock, host: Host) -> dict[str, float]:
    block = torch.zeros(2**22)
    return {"moved bytes": clock.best(block.clone) / (4 * block.numel())}


def _files(clock: _Clock, host: Host) -> dict[str, float]:
    data = os.urandom(2**24)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data")
        wall = _Clock(threads=2)  # writing waits, which CPU time leaves out
        return {"stored bytes": wall.best(lambda: path.write_bytes(data) and sha256_file(path), 0) / len(data)}


def _text(clock: _Clock, host: Host) -> dict[str, float]:
    """Seconds a character of a byte-level tokenizer, on prose."""
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS_DIR / "micro-1m")
    prose = [__doc__] * 200
    return {"tokenized characters": clock.best(lambda: encode(tokenizer, prose)) / sum(map(len, prose))}


def _llama(layers: int, width: int, tokens: int = _VOCABULARY) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=tokens, hidden_size=width, num_hidden_layers=layers, num_attention_heads=max(1, width // 64),
        intermediate_size=width * 8 // 3 // 64 * 64 or width, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def _layers(clock: _Clock, host: Host) -> dict[str, float]:
    """What a layer takes beyond what is accounted for: large, by its activations, and small, by its calls.

    Differences between five layers and one leave embedding and final norm out; those between a batch and a single
    token leave out what is done once a weight, such as casts.
    """
    one, five = _llama(1, 384, 64), _llama(5, 384, 64)
    ids = torch.randint(2, 64, (_ROWS, _LENGTH))
    formed = 4 * forward(shape_of(one.config, "measured"), _ROWS, _LENGTH).passes["activations"]
    tiny, tinier = _llama(5, 64, 64), _llama(1, 64, 64)
    found: dict[str, float] = {}
    for run, calls, passes, work in (
        (_infer, "layer calls", "activations", _there),
        (_train, "layer steps", "activations, backward", _there_and_back),
    ):

        def seconds(model: LlamaForCausalLM, tokens: torch.Tensor, run=run) -> float:
            return clock.best(lambda: run(model, tokens), 6 * _LEAST)

        known = {
            **dict.fromkeys(("activations", "activations, backward", "layer calls", "layer steps"), 0.0),
            **host.each,
        }
        known |= found
        least = (seconds(tiny, ids[:1, :2]) - seconds(tinier, ids[:1, :2])) / 4
        found[calls] = max(least - found.get("layer calls", 0), 0)
        once = seconds(five, ids[:1, :2]) - seconds(one, ids[:1, :2])
        whole = seconds(five, ids) - seconds(one, ids)
        products = 4 * Host(host.rates, known, 0).seconds(work(shape_of(one.config, "measured")))
        found[passes] = max(whole - once - products, 0) / formed
    quantized = _llama(1, 384, 64)
    quantize_model(quantized, make_format(**_FORMAT))
    count = shape_of(one.config, "measured").quantizable
    return {**found, "summarized weights": clock.best(lambda: summarize_weights(quantized, one), 0) / count}


def _there(shape: Architecture) -> Work:
    return Work(forward(shape, _ROWS, _LENGTH).products, _only_attention(forward(shape, _ROWS, _LENGTH)))


def _there_and_back(shape: Architecture) -> Work:
    work = forward(shape, _ROWS, _LENGTH) + backward(shape, _ROWS, _LENGTH, "fused")
    formed = work.passes["activations"]
    return Work(work.products, {**_only_attention(work), "activations": formed})


def _only_attention(work: Work) -> dict[str, float]:
    return {name: amount for name, amount in work.passes.items() if "attention" in name}


def _infer(model: LlamaForCausalLM, ids: torch.Tensor) -> None:
    with torch.no_grad(), _autocast():
        model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)


def _train(model: LlamaForCausalLM, ids: torch.Tensor) -> None:
    with _autocast():
        states = model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state
    states.sum().backward()
    model.zero_grad()


def _generation(clock: _Clock, host: Host) -> dict[str, float]:
    """Seconds of a step of transformers' loop beyond the model's own."""
    model, new = _llama(1, 64, 64).to(_low()), 24
    model.generation_config.eos_token_id = None
    ids = torch.randint(2, 64, (1, 2))
    options = {"attention_mask": torch.ones_like(ids), "do_sample": True, "top_k": 0, "pad_token_id": 1}

    def write() -> None:
        model.generate(ids, max_new_tokens=new, **options)

    shape = shape_of(model.config, "measured")
    step = host.seconds(forward(shape, 1, 1) + head(shape, 1))
    return {"written tokens": max(clock.best(write, 0) / new - step, 0)}


_IMPORTS = {"stages": "bitdistiller.distill.trainer", "scorings": "bitdistiller.evaluate.tasks"}
# The peak of a process counts that of its parent at the fork, so a small one has to stand between.
_WATCH = """
import json, os, subprocess, sys, time
start = time.perf_counter()
child = subprocess.Popen(sys.argv[2:], stdout=sys.stderr)
_, status, usage = os.wait4(child.pid, 0)
peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
times = [usage.ru_utime + usage.ru_stime, time.perf_counter() - start]
with open(sys.argv[1], "w") as file:
    json.dump([os.waitstatus_to_exitcode(status), *times, peak], file)
"""


@dataclass(frozen=True)
class ProcessCost:
    """Exit status, CPU and wall seconds and peak resident bytes of a process."""

    status: int
    cpu_seconds: float
    wall_seconds: float
    peak_bytes: int


def process_cost(command: list[str], **options) -> ProcessCost:
    """Run a command to its end; ``options`` are those of ``subprocess.run``."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "cost.json")
        subprocess.run([sys.executable, "-S", "-E", "-c", _WATCH, str(result), *command], check=True, **options)
        return ProcessCost(*json.loads(result.read_text()))


def _start(threads: int) -> tuple[dict[str, float], float]:
    """Seconds of a process that imports what a stage imports, what scoring tasks adds, and the peak bytes of both."""
    costs = [
        process_cost([sys.executable, "-c", f"import {', '.join(list(_IMPORTS.values())[: count + 1])}"])
        for count in range(len(_IMPORTS))
    ]
    first, both = (cost.cpu_seconds if threads == 1 else cost.wall_seconds for cost in costs)
    return {"stages": first, "scorings": max(both - first, 0)}, costs[-1].peak_bytes
