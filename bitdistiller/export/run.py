"""A run of ``params.yaml`` by its name -> its student as a packed folder, verified when that is asked for."""

from pathlib import Path

import torch

from bitdistiller.config import Params, entry
from bitdistiller.distill.student import load_student
from bitdistiller.errors import UserError
from bitdistiller.export.affine import export_compressed_tensors, export_gptq
from bitdistiller.export.folder import DTYPES
from bitdistiller.export.native import export_native
from bitdistiller.export.verify import checkpoint_size, verify
from bitdistiller.quant import make_format

CONTAINERS = {"native": export_native, "compressed-tensors": export_compressed_tensors, "gptq": export_gptq}
_DEFAULT_DTYPE = {"native": "float32", "compressed-tensors": "float32", "gptq": "float16"}


def export_run(
    name: str,
    params: Params,
    artifacts: Path,
    container: str,
    folder: Path | None = None,
    dtype: str | None = None,
    verify_with: str | None = None,
) -> list[str]:
    """Export the student of run ``name``; returns lines that say what was written.

    Args:
        name: entry under ``runs``.
        params: the parameters it was trained with.
        artifacts: where ``train`` left its student.
        container: ``native``, ``compressed-tensors`` or ``gptq``.
        folder: where to write; default ``artifacts/export/NAME-CONTAINER``.
        dtype: of the weights that are not quantized; default fp32, and fp16 for GPTQ.
        verify_with: interpreter of an environment that has the container's software; None: do not verify.

    Raises:
        UserError: an unknown name, no student, what the container does not hold, a folder that must not be replaced,
            or a checkpoint that fails verification; then ``folder`` is left as it was.
    """
    _choice("--to", container, CONTAINERS)
    dtype = dtype or _DEFAULT_DTYPE[container]
    _choice("--dtype", dtype, DTYPES)
    torch.set_num_threads(params.threads)
    quantizer = params.quantizers[entry(params.runs, "runs in params.yaml", name).quantizer]
    fmt = make_format(quantizer.format, bits=quantizer.bits, group_size=quantizer.group_size)
    student = load_student(name, params, artifacts)
    folder = folder or artifacts / "export" / f"{name}-{container}"
    lines = [str(folder), f"{container}, {fmt.name}, {fmt.bits} bits, groups of {fmt.group_size}, others {dtype}"]

    def check(written: Path) -> None:
        size = checkpoint_size(written, student.model, fmt)
        lines.append(str(size))
        if verify_with is None:
            return
        if container == "native" and not size.passed:  # the others store more than codes, scales and zero points
            raise UserError(f"the checkpoint is larger than its format says and was not kept: {size}")
        comparisons = verify(container, written, student.model, fmt, DTYPES[dtype], verify_with)
        if failed := [str(c) for c in comparisons if not c.passed]:
            raise UserError(
                f"the checkpoint does not compute what the student computes and was not kept: {'; '.join(failed)}"
            )
        lines.extend(map(str, comparisons))

    CONTAINERS[container](student.model, student.tokenizer, fmt, folder, DTYPES[dtype], check)
    return lines


def _choice(option: str, given: str, choices: dict) -> None:
    if given not in choices:
        raise UserError(f"{option} takes {', '.join(choices)}, not {given!r}")
