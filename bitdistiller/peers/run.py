"""A peer of ``params.yaml`` -> a model folder with another quantizer's weights, made elsewhere and checked here.

Other people's quantizers pin packages that do not fit beside ours, so they have an environment of their own
(``make peers``), and ``runner.py`` is the program that runs there. It is given the pretrained model in fp32, as
students start from it, and the calibration sequences of the clipping search, spread over the same text in the same
way. What it returns is believed after it was looked at: the same parameters, nothing but the weights of quantized
layers changed, and in no group of them more values than the bits allow. It is then an ordinary dense model folder.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from jaxtyping import Int
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from bitdistiller.config import Params, PeerParams, QuantizerParams, entry
from bitdistiller.data.blocks import packed_blocks
from bitdistiller.data.text import load_text
from bitdistiller.errors import UserError
from bitdistiller.models import LoadedModel, load_model, require_context
from bitdistiller.quant import quantizable
from bitdistiller.results import Cost, Record

RUNNER = Path(__file__).with_name("runner.py")
RECORD_FILE = "peer.json"


class PeerRecord(Record):
    """How another quantizer made a model low-bit.

    ``versions`` are of its package, torch and transformers in the peers' environment; ``cost`` is that of its process.
    """

    peer: PeerParams
    quantizer: QuantizerParams
    versions: dict[str, str]
    quantized_parameters: int
    bits_per_weight: float
    cost: Cost


def peers_python(params: Params) -> Path:
    """Interpreter that `make peers` puts beside the main environment."""
    return Path(params.root) / ".venv-peers" / "bin" / "python"


def quantize_with_peer(name: str, params: Params, artifacts: Path, python: Path | None = None) -> PeerRecord:
    """Quantize with another package and leave a model folder in ``artifacts/peers/NAME``; its output goes to NAME.log.

    Args:
        name: entry under ``peers``.
        params: all parameters.
        artifacts: of the scale.
        python: interpreter of an environment with the package; by default that of `make peers`.

    Raises:
        UserError: an unknown name, no such interpreter or package, groups that do not fit, too little text, a package
            that fails, or weights that are not what they should be.
    """
    peer = entry(params.peers, "peers in params.yaml", name)
    quantizer = params.quantizers[peer.quantizer]
    python = require_python(python or peers_python(params))
    original = load_model(quantizer.model)
    require_context(original, quantizer.calibration_length)
    _require_whole_groups(original.model, quantizer)
    folder = artifacts / "peers" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=folder.parent) as staging:
        work = Path(staging).absolute()
        original.model.save_pretrained(work / "model")
        original.tokenizer.save_pretrained(work / "model")
        save_file({"input_ids": calibration_ids(original.tokenizer, quantizer)}, work / "ids.safetensors")
        cost = _call(python, peer, quantizer, params.threads, work, folder.with_suffix(".log"))
        with safe_open(work / "weights.safetensors", framework="pt") as file:
            versions = json.loads(file.metadata()["versions"])
        count = take_weights(original.model, load_file(work / "weights.safetensors"), quantizer)
        record = PeerRecord(
            peer=peer,
            quantizer=quantizer,
            versions=versions,
            quantized_parameters=count,
            bits_per_weight=bits_per_weight(peer, quantizer),
            cost=cost,
        )
        original.model.save_pretrained(work / "done")
        original.tokenizer.save_pretrained(work / "done")
        record.write(work / "done" / RECORD_FILE)
        shutil.rmtree(folder, ignore_errors=True)
        (work / "done").rename(folder)
    return record


def load_peer(name: str, params: Params, artifacts: Path) -> LoadedModel:
    """What ``quantize_with_peer`` left: a dense model whose weights are low-bit values already.

    Raises:
        UserError: it was not made yet, or with other parameters.
    """
    record = read_record(name, params, artifacts)
    loaded = load_model(str(artifacts / "peers" / name))
    package, version = next(iter(record.versions.items()))
    return LoadedModel(name, loaded.model, loaded.tokenizer, f"quantized by {package} {version}")


def read_record(name: str, params: Params, artifacts: Path) -> PeerRecord:
    """The record of a peer's model; same errors as ``load_peer``."""
    peer, folder = entry(params.peers, "peers in params.yaml", name), artifacts / "peers" / name
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; make it first with `bitdistiller peer {name}`")
    record = PeerRecord.read(folder / RECORD_FILE)
    if (record.peer, record.quantizer) != (peer, params.quantizers[peer.quantizer]):
        raise UserError(f"{folder} was made with other parameters; make it anew with `bitdistiller peer {name}`")
    return record


def require_python(python: Path) -> Path:
    """The interpreter as an absolute path; links are not followed, as they lead out of the environment.

    Raises:
        UserError: it is not there.
    """
    if not python.exists():
        raise UserError(
            f"other people's quantizers need an environment of their own and {python} does not exist; "
            "make it with `make peers`"
        )
    return python.absolute()


def calibration_ids(tokenizer, quantizer: QuantizerParams) -> Int[Tensor, "B T"]:
    """Whole sequences of train text with at least ``calibration_tokens`` tokens, spread over all documents.

    Raises:
        UserError: there is less text than that.
    """
    count = -(-quantizer.calibration_tokens // quantizer.calibration_length)
    blocks = packed_blocks(tokenizer, load_text(quantizer.text, "train"), quantizer.calibration_length)
    if len(blocks) < count:
        raise UserError(
            f"the text gives {blocks.numel()} tokens, fewer than calibration_tokens = {quantizer.calibration_tokens}"
        )
    return blocks[torch.linspace(0, len(blocks) - 1, count).long()]


def bits_per_weight(peer: PeerParams, quantizer: QuantizerParams) -> float:
    """Stored bits a weight: its code and its share of an fp16 scale and a zero point, which HQQ does not round."""
    zero_bits = 16 if peer.method == "hqq" else quantizer.bits
    return quantizer.bits + (16 + zero_bits) / quantizer.group_size


@torch.no_grad()
def take_weights(model: PreTrainedModel, found: dict[str, Tensor], quantizer: QuantizerParams) -> int:
    """Put the weights of quantized layers into ``model``; returns how many they are.

    Args:
        model: the pretrained model that the quantizer was given.
        found: every parameter by its name, as the quantizer left it.
        quantizer: bits and group size.

    Raises:
        UserError: other names or shapes than the model's, a parameter that should not have changed, numbers that are
            not finite, or a group with more distinct values than its bits allow.
    """
    wanted = dict(model.named_parameters())
    if strange := sorted(set(found) ^ set(wanted)):
        raise UserError(f"the quantized model has other parameters than the one it was made from, first {strange[0]}")
    low_bit = {f"{name}.weight" for name in quantizable(model)}
    for name, parameter in wanted.items():
        value = found[name]
        if value.shape != parameter.shape:
            raise UserError(f"{name} became {tuple(value.shape)} by quantization; it was {tuple(parameter.shape)}")
        if name in low_bit:
            _require_low_bit(name, value, quantizer)
            parameter.copy_(value)
        elif not torch.equal(value, parameter):
            raise UserError(f"{name} is no weight of a quantized layer, and changed in quantization all the same")
    return sum(wanted[name].numel() for name in low_bit)


def _require_low_bit(name: str, value: Tensor, quantizer: QuantizerParams) -> None:
    if not value.isfinite().all():
        raise UserError(f"{name} holds NaN or Inf after quantization")
    groups = value.reshape(-1, quantizer.group_size).sort(dim=1).values
    levels = 1 + int((groups.diff(dim=1) != 0).sum(dim=1).max())
    if levels > 2**quantizer.bits:
        raise UserError(
            f"{name} has a group of {quantizer.group_size} weights with {levels} distinct values, which is more than "
            f"{quantizer.bits} bits can tell apart"
        )


def _require_whole_groups(model: PreTrainedModel, quantizer: QuantizerParams) -> None:
    for name, layer in quantizable(model).items():
        if layer.in_features % quantizer.group_size:
            raise UserError(
                f"{name} has rows of {layer.in_features} weights, which groups of {quantizer.group_size} do not fill; "
                "other people's quantizers take whole groups only, so choose another group_size for peers"
            )


def _call(python: Path, peer: PeerParams, quantizer: QuantizerParams, threads: int, work: Path, log: Path) -> Cost:
    """Run the quantizer in its environment; ``work`` has what it reads, gets what it writes, and is where it runs."""
    start = time.perf_counter()
    command = [python, RUNNER, peer.method, "model", "ids.safetensors", "weights.safetensors"]
    command += ["--bits", quantizer.bits, "--group-size", quantizer.group_size, "--threads", threads]
    if peer.iterations is not None:
        command += ["--iterations", peer.iterations]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    with log.open("w") as output:
        try:
            done = subprocess.run(
                list(map(str, command)), cwd=work, env=environment, stdout=output, stderr=subprocess.STDOUT
            )
        except OSError as error:
            raise UserError(f"{python} cannot be started: {error}") from error
    if done.returncode:
        last = ([line for line in log.read_text().splitlines() if line.strip()] or ["it said nothing"])[-1]
        if last.startswith("missing:"):
            raise UserError(f"{python} cannot run {peer.method} ({last}); fill its environment with `make peers`")
        raise UserError(f"{peer.method} failed in {python}: {last.strip()} (all it said is in {log})")
    seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return Cost(seconds=round(seconds, 2), peak_bytes=peak * (1 if sys.platform == "darwin" else 1024))
