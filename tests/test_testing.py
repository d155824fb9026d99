"""The suite for formats finds what it is for: bugs planted in a user's own quantizer break what names them.

The quantizer is the whole example of ``test_user_quantizer.py``, as a user would copy it, with one piece of its source
replaced.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import Phase, settings

from bitdistiller.quant import fake_quantize
from bitdistiller.quant.int_asym import IntAsym
from bitdistiller.testing import CONTRACT, PROMISES, FormatInvariants, check_format, invariants_of
from bitdistiller.testing.invariants import EXTRAS, fake_equals_real, gradient_passes_through

EXAMPLE = Path(__file__).with_name("test_user_quantizer.py").read_text()
TIES = (".round()", ".add(0.5).floor()")  # ties go up and no longer to the even level
EVERY = (*CONTRACT, *PROMISES, "gradient", "fake-equals-real")


@pytest.fixture(autouse=True)
def unshrunk():
    """Whether a bug is found is the question here, not the smallest weights that show it."""
    profile = settings.get_current_profile_name()
    found_first = settings(settings.get_profile(profile), phases=[Phase.explicit, Phase.generate], database=None)
    settings.register_profile("unshrunk", found_first)
    settings.load_profile("unshrunk")
    yield
    settings.load_profile(profile)


def planted(*replacements):
    """The example's quantizer, in groups of 8, and its function for training."""
    source = EXAMPLE
    for snippet, bug in replacements:
        assert source.count(snippet) == 1, f"{snippet!r} is not in the example exactly once"
        source = source.replace(snippet, bug)
    names = {}
    exec(compile(source, "planted", "exec"), names)
    return names["PowersOfTwo"](group_size=8), names["straight_through"]


def broken(fmt, fake, only=None):
    """Names of the invariants that some weights break, of all or of one."""
    found = set()
    for name, run in invariants_of(fmt, fake):
        if only not in (None, name):
            continue
        try:
            run()
        except AssertionError:
            found.add(name)
    return found


@pytest.mark.parametrize("snippet, bug, names", [
    pytest.param(".long() + 2", ".long() + 3", {*EVERY} - {"level-count"}, id="codes one above the range"),
    pytest.param("clamp(-2, 2)", "clamp(-2, 1)", {"nearest", "half-step", "idempotent", "sign-equivariant"},
                 id="top level never used"),
    pytest.param(*TIES, {"sign-equivariant"}, id="other ties than promised"),
    pytest.param("(w - w.detach())", "(w - w.detach()) * (w.abs() < w.abs().max())", {"gradient"},
                 id="gradient killed at the bounds"),
    pytest.param(".amax(-1)", ".amax((1, 2)).unsqueeze(1).expand(-1, groups.shape[1])", {"groups-do-not-leak"},
                 id="one range for all groups of a row"),
])  # fmt: skip
def test_a_planted_bug_breaks_these_invariants_and_no_others(snippet, bug, names):
    fmt, fake = planted((snippet, bug))
    assert broken(fmt, fake) == names
    with pytest.raises(AssertionError, match="PowersOfTwo-3bit-g8 breaks"):
        check_format(fmt, fake)


def test_other_ties_are_fine_when_declared():
    declared = ("frozenset(PROMISES)", 'frozenset(PROMISES) - {"sign-equivariant"}')
    check_format(*planted(declared, TIES))
    assert broken(*planted(declared)) == {"not-sign-equivariant"}  # for it still keeps what it no longer promises


# For each invariant a bug that it has to find.
BUGS = {
    "codes-in-range": (".long() + 2", ".long() + 3"),
    "values-in-codebook": ("self.codes.unsqueeze", "(4 - self.codes).unsqueeze"),
    "level-count": ("promises = 3", "promises = 2"),
    "finite": (".clamp(-largest, largest)", ""),
    "dtype-and-shape-kept": (".to(self.dtype)", ".float()"),
    "groups-do-not-leak": (".amax(-1)", ".amax(-1).amax().expand(groups.shape[:2])"),
    "rows-permute": (".amax(-1)", ".amax(-1)[:1].expand(len(w), -1)"),
    "groups-permute": (".amax(-1)", ".amax(-1).cummax(-1).values"),
    "strides-do-not-matter": ("w.float()", "w.float().as_strided(w.shape, (w.shape[1], 1))"),
    "deterministic": (".round()", ".add(torch.rand(()) - 0.5).round()"),
    "idempotent": (".amax(-1)", ".mean(-1)"),
    "nearest": (".round()", ".floor()"),
    "half-step": (".ceil()", ".round()"),
    "sign-equivariant": TIES,
    "scale-equivariant": (".ceil()", ".ceil().clamp_max(8)"),
    "monotone": (".clamp(-2, 2)", ".clamp(-2, 2).abs()"),
    "zero-is-level": ("0, 0.5", "0.1, 0.5"),
    "gradient": ("(w - w.detach())", "torch.nn.functional.hardtanh(w - w.detach(), 0, 0)"),
    "fake-equals-real": ("quantize(w.detach())", "quantize(w.detach() * 2)"),
    "not-monotone": ("frozenset(PROMISES)", 'frozenset(PROMISES) - {"monotone"}'),
}


@pytest.mark.parametrize("name", [*EVERY, "not-monotone"])
def test_every_invariant_finds_its_bug(name):
    assert broken(*planted(BUGS[name]), only=name) == {name}


@dataclass(frozen=True)
class OtherRoundingInTraining(IntAsym):
    """Trains with other rounding than it stores."""

    def round_groups(self, groups):
        scale, zero = self.fit_groups(groups)
        codes = (groups / scale.where(scale > 0, 1.0)).round() + zero
        return (codes.clamp(0, 2**self.bits - 1) - zero) * scale


@dataclass(frozen=True)
class TooFewBits(IntAsym):
    """Packs its four codes as if they were three."""

    code_bits = 8 / 5


@pytest.mark.parametrize("fmt, name", [
    (OtherRoundingInTraining(2, 8), "fake-equals-real"), (TooFewBits(2, 8), "packing-is-lossless"),
])  # fmt: skip
@pytest.mark.parametrize("fake", [None, fake_quantize])
def test_what_training_and_export_read_is_checked_in_formats_of_this_library(fmt, name, fake):
    assert broken(fmt, fake) == {name}


def test_a_quantizer_that_fails_now_and_then_is_an_ordinary_failure():
    calls = []

    class Moody(IntAsym):
        def quantize(self, w):
            calls.append(w)
            assert len(calls) % 3, "every third call fails"
            return super().quantize(w)

    with pytest.raises(AssertionError, match="breaks codes-in-range, but not at every call with the same weights"):
        check_format(Moody(2, 8))


def test_an_unknown_promise_is_named():
    class Bold(IntAsym):
        promises = frozenset({"lossless"})

    with pytest.raises(ValueError, match="promises lossless: choose among idempotent"):
        check_format(Bold(2, 8))


@pytest.mark.usefixtures("unchecked_shapes")
def test_what_is_no_format_is_named():
    with pytest.raises(ValueError, match=r"<class .*IntAsym.* is no weight format, for it has no bits, group_size$"):
        check_format(IntAsym)  # the class and not a value


def test_every_check_says_what_it_checks():
    extras = [check for _, check in EXTRAS.values()]
    for check in (*CONTRACT.values(), *PROMISES.values(), *extras, fake_equals_real, gradient_passes_through):
        assert check.__doc__


def test_naming_no_format_is_an_error():
    class Empty(FormatInvariants):
        formats = ()

    with pytest.raises(ValueError, match=r"Empty\.formats names no format"):
        Empty().pytest_generate_tests(None)
