"""Weights of a student after training: counts by hand, bounds for every format, and the three models in histograms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from bitdistiller.errors import UserError
from bitdistiller.evaluate.weights import summarize_weights
from bitdistiller.quant import FORMATS, learn_scales, make_format, quantizable, quantize_model
from bitdistiller.quant.measure import measure, total
from bitdistiller.testing import weights

ALL = [(name, bits) for name, fmt in FORMATS.items() for bits in fmt.supported_bits]


@pytest.fixture
def pair(tiny_model):
    """A student whose latent weights moved, and the original."""
    student, original = (LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32) for _ in range(2))
    with torch.no_grad():
        for layer in quantizable(student).values():
            layer.weight += 0.05 * torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0))
    return student, original


# --- one matrix -------------------------------------------------------------------------------------------------


def slow_entropy(codes: list[list[int]], group_size: int) -> float:
    """The obvious twin: one group of one row at a time."""
    bits = 0.0
    for row in codes:
        for start in range(0, len(row), group_size):
            group = row[start : start + group_size]
            shares = [group.count(code) / len(group) for code in set(group)]
            bits -= len(group) * sum(share * math.log2(share) for share in shares)
    return bits / sum(map(len, codes))


def test_a_matrix_by_hand():
    w = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 0.0, -3.0]])
    q = make_format("int-asym", bits=2, group_size=4).quantize(w)
    original = torch.tensor([[0.0, 1.0, 2.0, 4.0], [0.0, 0.0, 0.0, -3.0]])
    found = measure(q, original)
    assert q.dequantize().tolist() == w.tolist()
    assert (found.weights, found.zeros, found.error) == (8, 4 / 8, pytest.approx(1 / 30))
    assert found.entropy == pytest.approx((2 + slow_entropy([[1, 1, 1, 0]], 4)) / 2)


@given(data=st.data(), chosen=st.sampled_from(ALL), group_size=st.sampled_from([3, 8, 64]))
def test_measurements_have_their_bounds(data, chosen, group_size):
    w = data.draw(weights())
    fmt = make_format(chosen[0], bits=chosen[1], group_size=group_size)
    q = fmt.quantize(w)
    found = measure(q, w)
    assert found.weights == w.numel() and found.zeros == (q.dequantize() == 0).double().mean().item()
    assert -1e-6 <= found.entropy <= math.log2(fmt.level_count) + 1e-5 <= fmt.bits + 1e-5
    assert found.entropy == pytest.approx(slow_entropy(q.codes.tolist(), group_size), abs=1e-4)
    assert found.error >= 0
    again = total([found, found])
    assert again.weights == 2 * found.weights
    assert (again.zeros, again.entropy, again.error) == (found.zeros, found.entropy, found.error)


def test_weights_that_are_zero_have_no_error():
    zeros = torch.zeros(2, 4)
    assert measure(make_format("int-asym", bits=2, group_size=4).quantize(zeros), zeros).error == 0


# --- a model ----------------------------------------------------------------------------------------------------


def test_a_model_is_the_sum_of_its_layers(pair):
    student, original = pair
    fmt = make_format("int-asym", bits=2, group_size=20)
    quantize_model(student, fmt)
    found = summarize_weights(student, original)
    assert [layer.name for layer in found.layers] == list(quantizable(original))
    count = sum(layer.weights for layer in found.layers)
    assert found.zeros == pytest.approx(sum(layer.zeros * layer.weights for layer in found.layers) / count)
    assert found.entropy == pytest.approx(sum(layer.entropy * layer.weights for layer in found.layers) / count)
    values = {name: fmt.quantize(layer.weight.detach()).dequantize() for name, layer in quantizable(student).items()}
    before = {name: layer.weight.detach() for name, layer in quantizable(original).items()}
    for layer in found.layers:
        w, v = before[layer.name], values[layer.name]
        assert layer.error == pytest.approx(((v - w).square().sum() / w.square().sum()).item(), rel=1e-4)
        assert layer.zeros == (v == 0).double().mean().item()
    moved = sum((values[name] - before[name]).square().sum().item() for name in before)
    assert found.error == pytest.approx(moved / sum(w.square().sum().item() for w in before.values()), rel=1e-4)


def test_histograms_show_three_layers_of_three_models(pair):
    student, original = pair
    quantize_model(student, make_format("int-asym", bits=2, group_size=20))
    summary, names = summarize_weights(student, original), list(quantizable(original))
    assert [histogram.layer for histogram in summary.histograms] == [names[0], names[len(names) // 2], names[-1]]
    for histogram in summary.histograms:
        weight = quantizable(original)[histogram.layer].weight.detach()
        assert len(histogram.edges) == 62 and histogram.edges[30] == pytest.approx(-histogram.edges[31])
        assert histogram.edges[-1] == pytest.approx(4 * weight.std().item()) == pytest.approx(-histogram.edges[0])
        for counts in (histogram.original, histogram.latent, histogram.low_bit):
            assert len(counts) == 61 and sum(counts) == weight.numel()
        inside = histogram.original[1:-1]
        assert sum(inside) == ((weight >= histogram.edges[1]) & (weight < histogram.edges[-2])).sum()
        assert histogram.original != histogram.latent
        zeros = next(layer.zeros for layer in summary.layers if layer.name == histogram.layer)
        assert histogram.low_bit[30] >= round(zeros * weight.numel()) > 0  # 0 lies in the middle bin


def test_what_lies_beyond_the_edges_is_counted_at_the_ends(pair):
    student, original = pair
    name, layer = next(iter(quantizable(student).items()))
    with torch.no_grad():
        layer.weight[0, :3] = torch.tensor([1e3, -1e3, -1e3])
    quantize_model(student, make_format("int-asym", bits=8, group_size=20))
    histogram = summarize_weights(student, original).histograms[0]
    assert histogram.layer == name and histogram.latent[-1] >= 1 and histogram.latent[0] >= 2
    assert sum(histogram.latent) == layer.weight.numel()


def test_learned_scales_are_the_ones_that_count(pair):
    student, original = pair
    fmt = make_format("int-asym", bits=2, group_size=20)
    for layer in quantizable(student).values():
        learn_scales(layer, fmt)
    fitted = summarize_weights(student, original)
    with torch.no_grad():
        for layer in quantizable(student).values():
            layer.scale *= 3
    learned = summarize_weights(student, original)
    assert learned.zeros > fitted.zeros and learned.entropy < fitted.entropy


def test_an_original_with_other_layers_is_refused(pair):
    student, original = pair
    quantize_model(student, make_format("int-asym", bits=2, group_size=20))
    next(iter(quantizable(original).values())).weight = torch.nn.Parameter(torch.zeros(3, 32))
    with pytest.raises(UserError, match="other layers than the model it is said to come from"):
        summarize_weights(student, original)
