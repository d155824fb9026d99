"""Straight-through estimators and learned scales: gradients at, inside and outside the outermost levels."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitdistiller.errors import UserError
from bitdistiller.quant import ESTIMATORS, FORMATS, LearnedScaleLinear, fake_quantize, learn_scales, make_format
from bitdistiller.quant.learned import LEARNABLE
from bitdistiller.testing import weights

ALL = [(name, bits) for name, fmt in FORMATS.items() for bits in fmt.supported_bits]


def gradient(w, fmt, estimator):
    w = w.clone().requires_grad_()
    upstream = torch.arange(1.0, w.numel() + 1).view_as(w)
    fake_quantize(w, fmt, estimator).backward(upstream)
    return w.grad / upstream


@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(w=weights(), case=st.sampled_from(ALL))
def test_forward_is_the_same_under_every_estimator(estimator, w, case):
    fmt = make_format(case[0], bits=case[1], group_size=7)
    assert torch.equal(fake_quantize(w, fmt, estimator), fmt.quantize(w).dequantize())


def test_factors_at_inside_and_outside_the_outermost_levels():
    # ternary: s = mean |w| = 1, levels -1, 0 and 1
    w = torch.tensor([[-3.0, -1.0, -0.9, 0.0, 0.5, 1.0, 1.1, 0.5]])
    fmt = make_format("ternary", bits=2, group_size=8)
    assert fmt.quantize(w).dequantize().tolist() == [[-1, -1, -1, 0, 0, 1, 1, 0]]
    assert gradient(w, fmt, "pass-through").tolist() == [[1] * 8]
    assert gradient(w, fmt, "clipped").tolist() == [[0, 1, 1, 1, 1, 1, 0, 1]]
    soft = [[1 - math.tanh(value) ** 2 for value in w[0].tolist()]]
    assert torch.allclose(gradient(w, fmt, "tanh"), torch.tensor(soft), rtol=1e-5)


def test_our_gradient_at_the_bounds_does_not_depend_on_the_release_as_that_of_clamp_does():
    """If this fails with a newer PyTorch, `clamp` has changed once more: correct the docstring of `ste`."""
    w = torch.tensor([[-3.0, -1.0, -0.9, 0.0, 0.5, 1.0, 1.1, 0.5]])  # ternary levels -1, 0 and 1, as above
    composed = w.clone().requires_grad_()
    inside = composed.clamp(-1, 1)
    (inside + (inside.round() - inside).detach()).sum().backward()
    at_bounds = 1 if torch.__version__ < (2, 14) else 0
    assert composed.grad.tolist() == [[0, at_bounds, 1, 1, 1, at_bounds, 0, 1]]
    ours = gradient(w, make_format("ternary", bits=2, group_size=8), "clipped")
    assert ours.tolist() == [[0, 1, 1, 1, 1, 1, 0, 1]]


@pytest.mark.parametrize("name, bits", [case for case in ALL if "idempotent" in FORMATS[case[0]].promises])
@given(w=weights())
def test_weights_on_the_levels_keep_their_gradient_on_the_outermost_too(name, bits, w):
    fmt = make_format(name, bits=bits, group_size=7)
    on_levels = fmt.quantize(w).dequantize()
    assert (gradient(on_levels, fmt, "clipped") == 1).all()


def test_stretched_levels_reach_half_a_step_further():
    # seq at 2 bits: alpha = 1, outermost levels at -0.75 and 0.75; no weight of a group is beyond alpha
    w = torch.tensor([[-1.0, -0.75, -0.7, 0.0, 0.3, 0.75, 0.76, 1.0]])
    fmt = make_format("seq", bits=2, group_size=8)
    assert gradient(w, fmt, "clipped").tolist() == [[1] * 8]
    assert gradient(w, fmt, "tanh")[0, 0].item() == pytest.approx(1 - math.tanh(1) ** 2)


def test_one_sided_levels_stop_the_other_sign():
    # int-asym at 1 bit: levels 0 and 4, nothing below zero
    w = torch.tensor([[-1.0, -1e-3, 0.0, 2.0, 3.0]])
    fmt = make_format("int-asym", bits=1, group_size=5)
    assert fmt.quantize(w).dequantize().tolist() == [[0, 0, 0, 4, 4]]
    assert gradient(w, fmt, "clipped").tolist() == [[0, 0, 1, 1, 1]]
    assert gradient(w, fmt, "tanh")[0, :3].tolist() == [0, 0, 1]


SMALLEST = torch.finfo(torch.float32).tiny  # a narrower range counts as this one


@given(w=weights(), case=st.sampled_from(ALL), estimator=st.sampled_from(["clipped", "tanh"]))
def test_estimators_agree_with_the_slow_twin(w, case, estimator):
    fmt = make_format(case[0], bits=case[1], group_size=7)
    book, found = fmt.levels(fmt.quantize(w)), gradient(w, fmt, estimator)
    for row in range(len(w)):
        for column, value in enumerate(w[row].tolist()):
            low, high = (book[row, column // 7, end].item() for end in (0, -1))
            if fmt.name.startswith("seq"):
                low, high = (fmt.quantize(w).scale[row, column // 7].item() * sign for sign in (-1, 1))
            if estimator == "clipped":
                expected = float(low <= value <= high)
            else:
                bound = high if value > 0 else -low
                expected = 1 - math.tanh(min(abs(value) / max(bound, SMALLEST), 50)) ** 2
            assert found[row, column] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_an_unknown_estimator_is_refused():
    with pytest.raises(UserError, match="unknown straight-through estimator 'soft': choose one of pass-through"):
        fake_quantize(torch.ones(1, 2), make_format("int-asym", bits=2, group_size=2), "soft")


def slow_lsq(w, scale, zero, fmt, upstream):
    """LSQ's gradients, weight by weight: (to weights, to scales)."""
    size, levels = fmt.group_size, fmt.level_count
    to_w, to_scale = torch.zeros_like(w), torch.zeros_like(scale)
    for row in range(len(w)):
        for column in range(w.shape[1]):
            group = column // size
            s, value = scale[row, group].item(), w[row, column].item()
            if fmt.name == "int-asym":
                multiples = [code - zero[row, group].item() for code in range(levels)]
            else:
                multiples = [(2 * code - (levels - 1)) / levels for code in range(levels)]
            nearest = min(multiples, key=lambda u: abs(u - value / s))
            reach = (1, 1) if fmt.name.startswith("seq") else (-multiples[0], multiples[-1])
            inside = -reach[0] * s <= value <= reach[1] * s
            count = min(size, w.shape[1] - group * size)
            rate = 1 / math.sqrt(count * max(-multiples[0], multiples[-1]))
            to_w[row, column] = upstream[row, column] * inside
            to_scale[row, group] += upstream[row, column] * (nearest - inside * value / s) * rate
    return to_w, to_scale


@pytest.mark.parametrize("name, bits", [("int-asym", 2), ("int-asym", 3), ("seq", 2), ("seq-ternary", 2)])
@given(seed=st.integers(0, 2**31), shrink=st.sampled_from([1.0, 0.5, 1.5]))
def test_learned_scales_get_lsq_gradients(name, bits, seed, shrink):
    generator = torch.Generator().manual_seed(seed)
    fmt = make_format(name, bits=bits, group_size=4)
    layer = torch.nn.Linear(6, 3, bias=False)
    layer.weight.data = torch.randn(3, 6, generator=generator)
    learn_scales(layer, fmt)
    layer.scale.data = (layer.scale.data * shrink).half().float()
    upstream = torch.randn(3, 6, generator=generator)
    (layer(torch.eye(6)).T * upstream).sum().backward()
    zero = layer.zero if name == "int-asym" else None
    to_w, to_scale = slow_lsq(layer.weight.data, layer.scale.data, zero, fmt, upstream)
    assert torch.allclose(layer.weight.grad, to_w)
    assert torch.allclose(layer.scale.grad, to_scale, rtol=1e-4, atol=1e-5)


def test_learned_scales_at_inside_and_outside_the_outermost_levels():
    # int-asym at 2 bits with scale 1 and zero point 1: levels -1, 0, 1, 2
    w = torch.tensor([[-1.5, -1.0, -0.75, 0.0, 0.25, 1.75, 2.0, 2.5]])
    layer = torch.nn.Linear(8, 1, bias=False)
    layer.weight.data = w.clamp(-1, 2)
    learn_scales(layer, make_format("int-asym", bits=2, group_size=8))
    assert (layer.scale.item(), layer.zero.item()) == (1, 1)
    layer.weight.data = w
    layer(torch.eye(8)).sum().backward()
    assert layer.weight.grad.tolist() == [[0, 1, 1, 1, 1, 1, 1, 0]]
    slopes = [-1, -1 + 1, -1 + 0.75, 0, 0 - 0.25, 2 - 1.75, 2 - 2, 2]  # level, less the weight where it is inside
    assert layer.scale.grad.item() == pytest.approx(sum(slopes) / math.sqrt(8 * 2))


@pytest.mark.parametrize("name", LEARNABLE)
def test_learned_scales_start_at_the_fit_and_pack_what_they_compute(name):
    torch.manual_seed(0)
    fmt = make_format(name, bits=2, group_size=4)
    layer = torch.nn.Linear(10, 3)
    fitted = fmt.quantize(layer.weight.detach()).dequantize()
    assert isinstance(learn_scales(layer, fmt), LearnedScaleLinear)
    assert torch.equal(layer.quantized().dequantize(), fitted)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    before = layer.scale.detach().clone()
    for _ in range(3):
        layer(torch.randn(5, 10)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(layer.scale, before)
    stored = layer.quantized()
    assert torch.equal(stored.scale, stored.scale.half().float()) and stored.codes.max() < fmt.level_count
    computed = layer(torch.eye(10)).detach().T - layer.bias.detach()[:, None]
    assert torch.allclose(computed, stored.dequantize(), atol=1e-6)


def test_formats_without_one_scale_cannot_learn_it():
    with pytest.raises(UserError, match="nf-asym has no scale to learn"):
        learn_scales(torch.nn.Linear(4, 2), make_format("nf-asym", bits=2, group_size=4))
