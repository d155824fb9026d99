"""The clipping search against a slow, obvious twin, and its promise never to be worse than no clipping."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitdistiller.errors import UserError
from bitdistiller.quant import FORMATS, RangeFormat, clip_weights, make_format, search_clip
from bitdistiller.quant.clip import SHRINKS

RANGED = [
    (name, bits)
    for name, fmt in FORMATS.items()
    if issubclass(fmt, RangeFormat)
    for bits in fmt.supported_bits
    if bits < 5
]


def slow_search(w, x, fmt, symmetric=False):
    """Every group, every candidate, by the definition: clamp, quantize, compare outputs."""
    shrinks = [(a, b) for a in SHRINKS for b in SHRINKS if a == b or not symmetric]
    groups = -(-w.shape[1] // fmt.group_size)
    errors = torch.empty(len(w), groups, dtype=torch.float64)
    for row in range(len(w)):
        for group in range(groups):
            part = slice(group * fmt.group_size, (group + 1) * fmt.group_size)
            weights, inputs = w[row, part], x[:, part].double()
            low, high = weights.min().clamp_max(0), weights.max().clamp_min(0)
            errors[row, group] = min(output_error(weights, fmt, low * a, high * b, inputs) for a, b in shrinks)
    return errors


def output_error(weights, fmt, low, high, inputs):
    rounded = fmt.quantize(weights.clamp(low, high)[None]).dequantize()[0]
    return (inputs @ (weights.double() - rounded.double())).square().sum().item()


def group_errors(w, clipped, x, fmt):
    """Output error of each group after quantizing ``clipped``, measured against ``w``."""
    groups = -(-w.shape[1] // fmt.group_size)
    difference = w.double() - fmt.quantize(clipped).dequantize().double()
    parts = [slice(g * fmt.group_size, (g + 1) * fmt.group_size) for g in range(groups)]
    return torch.stack([(x[:, p].double() @ difference[:, p].T).square().sum(0) for p in parts], dim=1)


@st.composite
def cases(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    columns = draw(st.integers(3, 20))
    w = torch.randn(draw(st.integers(1, 3)), columns, generator=generator) ** draw(st.sampled_from([1, 3]))
    x = torch.randn(draw(st.integers(1, 8)), columns, generator=generator)
    w = w.to(draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])))
    name, bits = draw(st.sampled_from(RANGED))
    return w, x, make_format(name, bits=bits, group_size=draw(st.sampled_from([4, 7])))


@given(cases(), st.booleans())
def test_finds_what_the_slow_twin_finds(case, symmetric):
    w, x, fmt = case
    clipped = clip_weights(w, *search_clip(w, x, fmt, symmetric), fmt.group_size)
    found, best = group_errors(w, clipped, x, fmt), slow_search(w, x, fmt, symmetric)
    assert torch.allclose(found, best, rtol=1e-3, atol=1e-6 * x.square().sum().item())


@given(cases(), st.booleans())
def test_never_worse_than_no_clipping(case, symmetric):
    w, x, fmt = case
    clipped = clip_weights(w, *search_clip(w, x, fmt, symmetric), fmt.group_size)
    slack = 1e-6 * x.square().sum().item()
    assert (group_errors(w, clipped, x, fmt) <= group_errors(w, w, x, fmt) * (1 + 1e-4) + slack).all()


def test_autocast_changes_no_bounds():
    torch.manual_seed(0)
    w, x, fmt = torch.randn(8, 32), torch.randn(64, 32), make_format("int-asym", bits=2, group_size=16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = search_clip(w, x, fmt)
    assert all(torch.equal(a, b) for a, b in zip(found, search_clip(w, x, fmt), strict=True))


def test_bounds_are_on_the_grid_and_ragged_groups_have_their_own():
    torch.manual_seed(0)
    w, x = torch.randn(5, 10), torch.randn(16, 10)
    low, high = search_clip(w, x, make_format("int-asym", bits=2, group_size=4))
    assert low.shape == high.shape == (5, 3)
    shrink = high[:, 2] / w[:, 8:].amax(1)
    positive = w[:, 8:].amax(1) > 0
    assert all(min(abs(s - g) for g in SHRINKS) < 1e-6 for s in shrink[positive].tolist())


def test_symmetric_clipping_shrinks_both_ends_alike():
    torch.manual_seed(0)
    w, x = torch.randn(6, 8), torch.randn(16, 8)
    low, high = search_clip(w, x, make_format("int-asym", bits=2, group_size=8), symmetric=True)
    assert torch.allclose(low[:, 0] / w.amin(1), high[:, 0] / w.amax(1)) and (high[:, 0] < w.amax(1)).any()


def test_formats_without_a_range_are_refused():
    with pytest.raises(UserError, match="format binary has no range to clip"):
        search_clip(torch.zeros(2, 4), torch.zeros(3, 4), make_format("binary", bits=1, group_size=4))
