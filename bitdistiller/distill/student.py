"""Students on disk and in memory: before training, while quantized, and saved.

A saved student is an ordinary checkpoint of its latent weights, so that every tool reads it, with its learned scales,
where it has any, in a file beside it. What makes it low-bit is the quantizer in the parameters, which is applied again
whenever it is loaded: training, evaluation and export see the same values.
"""

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from bitdistiller.config import Params, QuantizerParams
from bitdistiller.distill.clipping import apply_clipping
from bitdistiller.errors import UserError
from bitdistiller.models import LoadedModel, load_model
from bitdistiller.quant import learned_tensors, load_learned, make_format, quantize_model

SCALES_FILE = "scales.safetensors"


def prepare_student(quantizer: QuantizerParams, bounds: Path) -> LoadedModel:
    """The pretrained model with clipped weights and fake-quantized layers: a student before its first step."""
    student = load_model(quantizer.model)
    apply_clipping(student.model, bounds, quantizer)
    quantize_student(student.model, quantizer)
    return student


def quantize_student(model: PreTrainedModel, quantizer: QuantizerParams) -> int:
    """Fake-quantize a model as ``quantizer`` says; returns how many weights that are."""
    fmt = make_format(quantizer.format, bits=quantizer.bits, group_size=quantizer.group_size)
    return quantize_model(model, fmt, quantizer.estimator, quantizer.scales == "learned")


def save_student(student: LoadedModel, state: dict[str, Tensor], folder: Path) -> None:
    """Write latent weights as an ordinary checkpoint, learned scales beside it, and the tokenizer.

    Args:
        state: the model's state, whole, wherever its own tensors lie.
    """
    learned = learned_tensors(student.model)
    latent = {name: tensor for name, tensor in state.items() if name not in learned}
    student.model.save_pretrained(folder, state_dict=latent)
    student.tokenizer.save_pretrained(folder)
    if learned:
        save_file({name: state[name].contiguous() for name in learned}, folder / SCALES_FILE)


def load_student(name: str, params: Params, artifacts: Path) -> LoadedModel:
    """The trained student of run ``name``: latent weights under fake quantization.

    Raises:
        UserError: it was not trained yet, or its files do not belong together.
    """
    quantizer = params.quantizers[params.runs[name].quantizer]
    folder = artifacts / "students" / name
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; train the student first with `bitdistiller train {name}`")
    student = load_model(str(folder))
    quantize_student(student.model, quantizer)
    if quantizer.scales == "learned":
        if not (folder / SCALES_FILE).exists():
            raise UserError(f"{folder} has no {SCALES_FILE}, so it was trained without learned scales; train it again")
        load_learned(student.model, load_file(folder / SCALES_FILE))
    return student
