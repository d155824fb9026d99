"""Packed codes: every size, refused codes, refused rows. That packing is lossless is an invariant of every format."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitdistiller.errors import UserError
from bitdistiller.quant import FORMATS, make_format, pack, unpack

ALL = [(name, bits) for name, fmt in FORMATS.items() for bits in fmt.supported_bits]


@given(st.sampled_from(ALL), st.integers(0, 3), st.integers(1, 70), st.integers(0, 2**31))
def test_any_codes_survive_in_no_more_bytes_than_they_need(case, rows, columns, seed):
    fmt = make_format(case[0], bits=case[1], group_size=8)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(fmt.level_count, (rows, columns), generator=generator, dtype=torch.uint8)
    packed = pack(codes, fmt)
    assert packed.dtype == torch.uint8 and packed.shape == (rows, -int(-columns * fmt.code_bits // 8))
    assert torch.equal(unpack(packed, fmt, columns), codes)


def test_bits_lie_in_the_documented_order():
    two, three = make_format("int-asym", bits=2, group_size=4), make_format("int-asym", bits=3, group_size=4)
    assert pack(torch.tensor([[3, 0, 1, 2]], dtype=torch.uint8), two).tolist() == [[0b10_01_00_11]]
    assert pack(torch.tensor([[7, 1, 4]], dtype=torch.uint8), three).tolist() == [[0b00_001_111, 0b1]]
    ternary = make_format("ternary", bits=2, group_size=4)
    assert pack(torch.tensor([[2, 1, 0, 0, 2, 1]], dtype=torch.uint8), ternary).tolist() == [[2 + 3 + 2 * 81, 1]]


def test_codes_and_rows_that_do_not_fit_are_refused():
    fmt = make_format("ternary", bits=2, group_size=4)
    with pytest.raises(UserError, match="codes below 3, not 3"):
        pack(torch.tensor([[3]], dtype=torch.uint8), fmt)
    with pytest.raises(UserError, match="11 codes of format ternary take 3 bytes a row, not 2"):
        unpack(torch.zeros(1, 2, dtype=torch.uint8), fmt, 11)
