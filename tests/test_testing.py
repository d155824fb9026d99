"""The suite for formats finds what it is for: each planted bug breaks the invariant that names it."""

from dataclasses import dataclass

import pytest
import torch

from bitdistiller.quant import fake_quantize, make_format
from bitdistiller.quant.int_asym import IntAsym
from bitdistiller.quant.int_sym import IntSym
from bitdistiller.testing import CONTRACT, PROMISES, FormatInvariants, check_format, invariants_of
from bitdistiller.testing.invariants import EXTRAS


def broken(fmt, fake=fake_quantize):
    """Names of the invariants that some weights break."""
    found = set()
    for name, run in invariants_of(fmt, fake):
        try:
            run()
        except AssertionError:
            found.add(name)
    return found


@dataclass(frozen=True)
class OffByOne(IntAsym):
    """Clamps codes to 2^bits instead of 2^bits - 1, after a scale that is a little too small."""

    def fit(self, low, high):
        scale, zero = super().fit(low, high)
        return (scale * 0.75).half().float(), zero

    def encode(self, groups, scales):
        scale, zero = scales
        return (groups / scale.where(scale > 0, 1.0) + zero + 0.5).floor().clamp(0, 2**self.bits)


@dataclass(frozen=True)
class TiesUp(IntSym):
    """Rounds ties up while it promises to treat both signs alike."""

    def encode(self, groups, scales):
        top = self.level_count // 2
        return (groups / scales[0].where(scales[0] > 0, 1.0) + 0.5).floor().clamp(-top, top).add(top)


@dataclass(frozen=True)
class TiesUpDeclared(TiesUp):
    promises = IntSym.promises - {"sign-equivariant"}


@dataclass(frozen=True)
class Leaking(IntAsym):
    """Every group of a row gets the range of the whole row."""

    def fit_groups(self, groups):
        return super().fit_groups(groups.flatten(1).unsqueeze(1).expand(-1, groups.shape[1], -1))


@dataclass(frozen=True)
class Truncating(IntAsym):
    """Rounds down instead of to the nearest level."""

    def encode(self, groups, scales):
        scale, zero = scales
        return (groups / scale.where(scale > 0, 1.0) + zero).floor().clamp(0, 2**self.bits - 1)


@dataclass(frozen=True)
class OtherRoundingInTraining(IntAsym):
    """Trains with other rounding than it stores."""

    def round_groups(self, groups):
        scale, zero = self.fit_groups(groups)
        codes = (groups / scale.where(scale > 0, 1.0)).round() + zero
        return (codes.clamp(0, 2**self.bits - 1) - zero) * scale


@dataclass(frozen=True)
class TooModest(IntAsym):
    promises = IntAsym.promises - {"monotone"}


def gradient_killed_at_the_bounds(w, fmt):
    """Straight-through by composition: weights on the outermost levels get no gradient."""
    q = fmt.quantize(w.detach())
    book = fmt.levels(q).repeat_interleave(fmt.group_size, 1)[:, : w.shape[1]]
    inside = (w > book[..., 0]) & (w < book[..., -1])
    return q.dequantize() + torch.where(inside, w - w.detach(), 0.0)


@pytest.mark.parametrize("fmt, names", [
    (OffByOne(2, 8), {"codes-in-range"}),
    (TiesUp(2, 8), {"sign-equivariant"}),
    (Leaking(2, 8), {"groups-do-not-leak"}),
    (Truncating(2, 8), {"nearest"}),
    (OtherRoundingInTraining(2, 8), {"fake-equals-real"}),
    (TooModest(2, 8), {"not-monotone"}),
])  # fmt: skip
def test_planted_bugs_are_found(fmt, names):
    assert names <= broken(fmt)
    with pytest.raises(AssertionError, match="weights" if "not-monotone" in names else "breaks"):
        check_format(fmt)


def test_a_gradient_killed_at_the_bounds_is_found_and_nothing_else():
    assert broken(make_format("int-asym", bits=2, group_size=8), gradient_killed_at_the_bounds) == {"gradient"}


def test_other_ties_are_fine_when_declared():
    assert broken(TiesUpDeclared(2, 8)) == set()


def test_an_unknown_promise_is_named():
    class Bold(IntAsym):
        promises = frozenset({"lossless"})

    with pytest.raises(ValueError, match="promises lossless: choose among idempotent"):
        check_format(Bold(2, 8))


def test_every_check_says_what_it_checks():
    for check in (*CONTRACT.values(), *PROMISES.values(), *(check for _, check in EXTRAS.values())):
        assert check.__doc__


def test_naming_no_format_is_an_error():
    class Empty(FormatInvariants):
        formats = ()

    with pytest.raises(ValueError, match=r"Empty\.formats names no format"):
        Empty().pytest_generate_tests(None)
