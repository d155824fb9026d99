"""What tests of exported checkpoints compare: logits of a model, and of the same model as it is trained."""

import copy

import torch

from bitdistiller.export.verify import fixed_ids
from bitdistiller.quant import quantize_model

WEIGHTS = "model.safetensors"


@torch.no_grad()
def logits(model, ids=None):
    return model(input_ids=fixed_ids(model) if ids is None else ids).logits


def student_logits(model, fmt):
    """Logits of the model under fake quantization, as in training."""
    student = copy.deepcopy(model)
    quantize_model(student, fmt)
    return logits(student)
