"""What became of a student's weights: how many are zero, how much of the codes is used, how far they moved.

Three models are in one student: the pretrained weights it started from, the latent weights that training left, and the
low-bit values those are rounded to. Shares and errors compare the first with the last; histograms show all three, for
the first, the middle and the last quantized layer, on an axis measured in standard deviations of the first.
"""

import numpy as np
from torch import Tensor, nn

from bitdistiller.errors import UserError
from bitdistiller.quant import LearnedScaleLinear, Quantized, quantizable
from bitdistiller.quant.measure import measure, total
from bitdistiller.results import Histogram, LayerSummary, WeightSummary

EDGES, REACH = 62, 4  # 61 bins, so that 0 lies in the middle of one; standard deviations on each side


def summarize_weights(model: nn.Module, original: nn.Module) -> WeightSummary:
    """Compare a fake-quantized model, not yet baked, with the full-precision one that it started from.

    Raises:
        UserError: the two do not have the same layers.
    """
    layers, originals = quantizable(model), quantizable(original)
    if {name: layer.weight.shape for name, layer in layers.items()} != {
        name: layer.weight.shape for name, layer in originals.items()
    }:
        raise UserError("the student has other layers than the model it is said to come from; train it again")
    measured = {name: measure(_quantized(layer), originals[name].weight) for name, layer in layers.items()}
    overall, names = total(measured.values()), list(layers)
    return WeightSummary(
        zeros=overall.zeros,
        entropy=overall.entropy,
        error=overall.error,
        layers=[
            LayerSummary(name=name, weights=part.weights, zeros=part.zeros, entropy=part.entropy, error=part.error)
            for name, part in measured.items()
        ],
        histograms=[
            _histogram(names[place], layers[names[place]], originals[names[place]].weight)
            for place in sorted({0, len(names) // 2, len(names) - 1})
        ],
    )


def _quantized(layer: nn.Linear) -> Quantized:
    return layer.quantized() if isinstance(layer, LearnedScaleLinear) else layer.format.quantize(layer.weight)


def _histogram(name: str, layer: nn.Linear, original: Tensor) -> Histogram:
    reach = REACH * original.double().std().item() or 1.0  # constant weights have no spread to measure by
    edges = np.linspace(-reach, reach, EDGES)

    def counts(weight: Tensor) -> list[int]:
        values = weight.detach().double().clamp(-reach, reach).flatten().cpu().numpy()
        return np.histogram(values, edges)[0].tolist()

    return Histogram(
        layer=name,
        edges=edges.tolist(),
        original=counts(original),
        latent=counts(layer.weight),
        low_bit=counts(_quantized(layer).dequantize()),
    )
