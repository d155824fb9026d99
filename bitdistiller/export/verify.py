r"""A written checkpoint against the student it came from: the same token ids, two processes, two sets of logits.

The reference is the student as it is evaluated: latent weights replaced by their low-bit values, everything else in the
checkpoint's dtype. Native and compressed-tensors folders load as dense models, so with one version of torch nothing can
differ and nothing may.

In 16 bits rounding could hide other weights. So a model loaded in 16 bits is run in fp32 too, cast after loading,
against the student after the same casts: its low-bit weights go through 16 bits where the container loads dense ones,
and not where the software decodes at every pass, as gptqmodel does.

gptqmodel multiplies by transposed weights, and another version of torch may sum in another order. How much that changes
logits depends on the network: after a crude 2-bit rounding small errors grow from layer to layer. So in 16 bits the
measure is the student itself, run in 16 bits and in fp32: two ways of adding up differ by at most twice what separates
them, and anything above that means other weights. In fp32 it is a fixed share of the greatest logit.

The size is that of the quantized layers' tensors in the file, against what ``Format.bits_per_weight`` says. A native
checkpoint may exceed it by what rows of whole bytes cost; the others have tensors of their own and are only measured.
"""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from bitdistiller.errors import UserError
from bitdistiller.export.folder import DTYPES, WEIGHTS
from bitdistiller.quant import Format, bake, is_quantized, quantizable, quantize_model

ROUNDING = 1e-4  # of the greatest logit, in fp32
PADDING = 0.03  # of the expected size
INSTALL = {
    "native": "bitdistiller",
    "compressed-tensors": "compressed-tensors (pip install 'bitdistiller[export]')",
    "gptq": "gptqmodel==7.6.0, which wants an environment of its own: name its Python with --verify-python",
}
_BATCH, _LENGTH = 2, 64


@dataclass(frozen=True)
class Comparison:
    """Logits of a loaded checkpoint against the student's, in one arithmetic.

    Attributes:
        arithmetic: name of a dtype.
        difference: greatest absolute difference.
        greatest: greatest absolute logit.
        explained: difference that the container and rounding explain.
        bit_equal: whether all logits are the same numbers.
    """

    arithmetic: str
    difference: float
    greatest: float
    explained: float
    bit_equal: bool

    @property
    def passed(self) -> bool:
        """Whether the difference is explained; NaN is not."""
        return self.difference <= self.explained

    def __str__(self) -> str:
        verdict = "bit-equal" if self.bit_equal else "not bit-equal"
        limit = "" if self.bit_equal else f"; rounding explains {self.explained:.3g}"
        return (
            f"{verdict} in {self.arithmetic}: max |difference| {self.difference:.3g} of logits up to "
            f"{self.greatest:.3g}{limit}"
        )


@dataclass(frozen=True)
class Size:
    """Bytes of a folder, and bits that its quantized weights take in it."""

    folder_bytes: int
    bits_per_weight: float
    expected: float

    @property
    def passed(self) -> bool:
        """Whether quantized weights take at most 3 % more than the format says."""
        return self.bits_per_weight <= (1 + PADDING) * self.expected

    def __str__(self) -> str:
        return (
            f"{self.folder_bytes:,} bytes; {self.bits_per_weight:.4f} bits per quantized weight, "
            f"{self.bits_per_weight / self.expected:.4f} times the {self.expected:.4f} expected"
        )


def checkpoint_size(folder: Path, model: PreTrainedModel, fmt: Format) -> Size:
    """What a written folder takes, and what the format says its quantized weights should."""
    layers = quantizable(model)
    weights = sum(layer.weight.numel() for layer in layers.values())
    expected = sum(layer.weight.numel() * fmt.bits_per_weight(layer.in_features) for layer in layers.values()) / weights
    stored = 0
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  (a safetensors file is no dict)
            layer, _, last = name.rpartition(".")
            if layer in layers and last != "bias":
                stored += file.get_tensor(name).nbytes
    total = sum(path.stat().st_size for path in folder.iterdir())
    return Size(folder_bytes=total, bits_per_weight=8 * stored / weights, expected=expected)


def fixed_ids(model: PreTrainedModel) -> Tensor:
    """The batch of token ids that logits are compared on: the same for every checkpoint of a model."""
    length = min(_LENGTH, getattr(model.config, "max_position_embeddings", _LENGTH))
    rows = model.get_input_embeddings().num_embeddings
    return torch.randint(rows, (_BATCH, length), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def reference_logits(
    model: PreTrainedModel, dtype: torch.dtype, ids: Tensor, arithmetic: torch.dtype, dense: bool = False
) -> Tensor:
    """Logits of a baked student with its other weights in ``dtype``, computed in ``arithmetic``; casts ``model``.

    With ``dense`` its low-bit weights go through ``dtype`` too, as in a dense model that was loaded in it.
    """
    low_bit = {id(layer.weight) for layer in quantizable(model).values()}
    for parameter in model.parameters():  # not model.to(): that would round the rotary frequencies too
        stored = parameter.data if id(parameter) in low_bit and not dense else parameter.data.to(dtype)
        parameter.data = stored.to(arithmetic)
    return model(input_ids=ids).logits.float()


def verify(
    container: str, folder: Path, model: PreTrainedModel, fmt: Format, dtype: torch.dtype, python: str = sys.executable
) -> list[Comparison]:
    """Load ``folder`` in a fresh process with the software it was written for, and compare logits.

    Args:
        container: ``native``, ``compressed-tensors`` or ``gptq``.
        folder: what was exported.
        model: the student, fake-quantized or not; its latent weights are replaced by low-bit ones on the way.
        fmt: its format.
        dtype: of the export.
        python: interpreter of an environment that has the software.

    Raises:
        UserError: the software is not there, or it cannot load the folder.
    """
    ids = fixed_ids(model)
    found, version = _loaded_logits(container, folder, ids, python)
    dense = container != "gptq"
    same = dense and version == torch.__version__
    if not is_quantized(model):
        quantize_model(model, fmt)
    bake(model)
    exact = wanted = reference_logits(model, dtype, ids, torch.float32, dense)
    explained = ROUNDING * exact.abs().max().item()
    comparisons = []
    if "logits_fp32" in found:
        comparisons.append(_compare(found["logits_fp32"], exact, torch.float32, 0.0 if same else explained))
    if dtype != torch.float32:
        wanted = reference_logits(model, dtype, ids, dtype)
        explained = 2 * (wanted - exact).abs().max().item()
    return [*comparisons, _compare(found["logits"], wanted, dtype, 0.0 if same else explained)]


def _compare(found: Tensor, wanted: Tensor, arithmetic: torch.dtype, explained: float) -> Comparison:
    name = next(name for name, dtype in DTYPES.items() if dtype == arithmetic)
    difference, greatest = (found - wanted).abs().max().item(), wanted.abs().max().item()
    return Comparison(name, difference, greatest, explained, torch.equal(found, wanted))


def _loaded_logits(container: str, folder: Path, ids: Tensor, python: str) -> tuple[dict[str, Tensor], str]:
    program = Path(__file__).with_name("logits.py")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if python == sys.executable:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    with tempfile.TemporaryDirectory() as work:
        given, made = Path(work) / "ids.safetensors", Path(work) / "logits.safetensors"
        save_file({"input_ids": ids}, given)
        command = [python, program, container, folder.absolute(), given, made, torch.get_num_threads()]
        try:
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
        except OSError as error:
            raise UserError(f"--verify-python {python} cannot be started: {error}") from error
        if done.returncode:
            raise UserError(_failure(container, python, done.stderr))
        with safe_open(made, framework="pt") as file:
            version = file.metadata()["torch"]
        return load_file(made), version


def _failure(container: str, python: str, stderr: str) -> str:
    last = stderr.strip().splitlines()[-1] if stderr.strip() else "it said nothing"
    if last.startswith("missing:"):
        return f"{python} cannot verify {container} folders ({last}): it needs {INSTALL[container]}"
    return f"the {container} checkpoint could not be loaded by {python}: {last}"
