"""Formats: the invariants of ``bitdistiller.testing`` for all, and each against a slow twin or numbers in print."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitdistiller.errors import UserError
from bitdistiller.quant import FORMATS, bake, make_format, quantize_model
from bitdistiller.quant.format import snap_down
from bitdistiller.quant.nf_asym import LEVELS
from bitdistiller.testing import FormatInvariants, weights

ALL = [(name, bits) for name, fmt in FORMATS.items() for bits in fmt.supported_bits]


class TestEveryFormat(FormatInvariants):
    """All widths of all formats in ragged groups of 7, and each format's narrowest in groups of one and of a row."""

    formats = [make_format(name, bits=bits, group_size=7) for name, bits in ALL] + [
        make_format(name, bits=fmt.supported_bits[0], group_size=size)
        for name, fmt in FORMATS.items()
        for size in (1, 64)
    ]


@given(weights(), st.integers(1, 8), st.sampled_from([4, 7, 64]))
def test_int_asym_agrees_with_the_slow_twin_and_half_a_step(w, bits, group_size):
    fmt = make_format("int-asym", bits=bits, group_size=group_size)
    q = fmt.quantize(w)
    fast, top = q.dequantize(), 2**bits - 1
    for row in range(len(w)):
        for start in range(0, w.shape[1], group_size):
            values = w[row, start : start + group_size].double()
            group = start // group_size
            s, z = q.scale[row, group].double(), q.zero[row, group].double()
            low, high = min(values.min().item(), 0.0), max(values.max().item(), 0.0)
            assert s <= (high - low) / top * (1 + 1e-6) and z == z.round() and 0 <= z <= top
            error = (fast[row, start : start + group_size].double() - values).abs()
            if s == 0:
                assert high - low < 2**-24 * top * (1 + 1e-6)  # below the least fp16 number a step
                continue
            # with a normal fp16 scale within half a step, plus what the two ends lose to its rounding
            if 2**-14 <= s < 65504:
                assert (error <= s * (0.5 + top * 2**-10) + 1e-12).all()
            for value, result in zip(values, fast[row, start : start + group_size].double(), strict=True):
                book = [(code - z) * s for code in range(top + 1)]
                best = min(abs(value - level) for level in book)
                assert abs(value - result) <= best + 1e-6 * s


@given(weights(), st.sampled_from(list(LEVELS)), st.sampled_from([4, 7, 64]))
def test_nf_asym_takes_the_nearest_published_level(w, bits, group_size):
    fmt = make_format("nf-asym", bits=bits, group_size=group_size)
    q = fmt.quantize(w)
    book = fmt.levels(q).double().repeat_interleave(group_size, dim=1)[:, : w.shape[1]]
    scale = torch.where(
        w > 0,
        q.scale.repeat_interleave(group_size, 1)[:, : w.shape[1]],
        q.negative_scale.repeat_interleave(group_size, 1)[:, : w.shape[1]],
    ).double()
    same_sign = (book == 0) | (book.sign() == w.double().sign().unsqueeze(-1))
    distance = (book - w.double().unsqueeze(-1)).abs().where(same_sign, torch.inf).min(-1).values
    assert ((q.dequantize().double() - w.double()).abs() <= distance + 1e-6 * scale).all()


def test_nf3_levels_are_the_published_ones():
    w = torch.tensor([[-2.0, -1.07, -0.4938, 0.0, 0.1833375, 0.3819939, 0.6229857, 1.0]])
    q = make_format("nf-asym", bits=3, group_size=8).quantize(w)
    assert q.codes.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert q.scale.item() == 1.0 and q.negative_scale.item() == 2.0


def test_one_bit_int_asym_has_no_level_for_one_sign():
    q = make_format("int-asym", bits=1, group_size=4).quantize(torch.tensor([[-1.0, 0.1, 0.2, 3.0]]))
    assert q.dequantize().tolist() == [[0.0, 0.0, 0.0, 4.0]]


@given(st.floats(0, 1e6, width=32))
def test_snap_down_is_the_greatest_half_below(value):
    snapped = snap_down(torch.tensor([value]))
    assert snapped.half().float() == snapped and snapped <= value
    above = torch.nextafter(snapped.half(), torch.tensor([torch.inf], dtype=torch.half)).float()
    assert above > value or snapped == 65504


def test_bits_per_weight_counts_scales_and_ragged_groups():
    fmt = make_format("int-asym", bits=2, group_size=128)
    assert fmt.bits_per_weight() == 2 + 18 / 128
    assert fmt.bits_per_weight(576) == 2 + 18 * 5 / 576
    assert make_format("nf-asym", bits=3, group_size=128).bits_per_weight() == 3 + 32 / 128


def test_quantize_model_leaves_the_head_and_bake_gives_the_same_outputs(tiny_model):
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(tiny_model).eval()
    head = model.get_output_embeddings()
    keys = set(model.state_dict())
    fmt = make_format("int-asym", bits=2, group_size=20)
    count = quantize_model(model, fmt)
    assert count == 2 * (4 * 32 * 32 + 3 * 32 * 72)
    assert type(head) is torch.nn.Linear and set(model.state_dict()) == keys
    ids = torch.arange(12)[None]
    with torch.no_grad():
        trained_as = model(ids).logits
        bake(model)
        assert torch.equal(model(ids).logits, trained_as)
    weight = model.model.layers[0].mlp.down_proj.weight
    assert torch.equal(fmt.round(weight), weight)


def test_groups_longer_than_a_row_are_refused(tiny_model):
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(tiny_model)
    with pytest.raises(UserError, match=r"q_proj has rows of 32 weights, fewer than group_size = 64; .* at most 32"):
        quantize_model(model, make_format("int-asym", bits=2, group_size=64))
    assert type(model.model.layers[0].mlp.down_proj) is torch.nn.Linear  # nothing was changed


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(UserError, match="nothing to quantize"):
        quantize_model(torch.nn.Sequential(torch.nn.Conv1d(1, 1, 1)), make_format("int-asym", bits=2, group_size=4))
