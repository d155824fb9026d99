"""Property tests for weight formats: this library's own, and yours.

In a test file of your project (needs the extra ``testing``):

    from bitdistiller.testing import FormatInvariants

    class TestMyFormat(FormatInvariants):
        formats = [MyFormat(bits=2, group_size=16)]

pytest then runs every invariant on every format, each under a name of its own; Hypothesis looks for weights that break
it, as hard as the loaded profile says. ``check_format`` does the same in one call without pytest.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import ClassVar

from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis.errors import Flaky, NoSuchExample
from torch import Tensor

from bitdistiller.quant import fake_quantize
from bitdistiller.testing.invariants import (
    CONTRACT,
    EXTRAS,
    PROMISES,
    Check,
    FakeQuantize,
    WeightFormat,
    fake_equals_real,
    gradient_passes_through,
)
from bitdistiller.testing.strategies import weights

_TELLING_GROUP = 4  # smaller groups keep promises that the format does not: one weight is always its own extreme
_COUNTEREXAMPLES = 500  # tries to break a promise that a format does not make


class FormatInvariants:
    """Base of a pytest class that checks ``formats``.

    Attributes:
        formats: the formats to check.
        fake_quantize: the differentiable function that training uses, called as ``fake_quantize(w, fmt)``, which has to
            give the values of ``quantize(w).dequantize()`` and let the gradient through; None if there is none. The
            library's own is taken for formats that have ``round``.
    """

    formats: ClassVar[Sequence[WeightFormat]] = ()
    fake_quantize: ClassVar[FakeQuantize | None] = staticmethod(fake_quantize)

    def pytest_generate_tests(self, metafunc) -> None:
        """One test for each format and invariant."""
        if not self.formats:
            raise ValueError(f"{type(self).__name__}.formats names no format, so nothing would be tested")
        cases = [(fmt, name, run) for fmt in self.formats for name, run in invariants_of(fmt, type(self).fake_quantize)]
        metafunc.parametrize("run", [run for *_, run in cases], ids=[f"{_label(fmt)}-{name}" for fmt, name, _ in cases])

    def test_invariant(self, run):
        run()


def check_format(fmt: WeightFormat, fake: FakeQuantize | None = fake_quantize) -> None:
    """Run every invariant on ``fmt``.

    Raises:
        AssertionError: the first invariant that some weights break, with the weights.
    """
    for _, run in invariants_of(fmt, fake):
        run()


def invariants_of(fmt: WeightFormat, fake: FakeQuantize | None) -> Iterator[tuple[str, Callable[[], None]]]:
    """Names of the invariants of a format and functions that look for a violation."""
    missing = [name for name in ("bits", "group_size", "promises", "quantize", "levels") if not hasattr(fmt, name)]
    if missing:
        raise ValueError(f"{fmt!r} is no weight format, for it has no {', '.join(missing)}")
    unknown = set(fmt.promises) - set(PROMISES)
    if unknown:
        raise ValueError(f"{_label(fmt)} promises {', '.join(sorted(unknown))}: choose among {', '.join(PROMISES)}")
    checks = dict(CONTRACT)
    checks |= {name: check for name, (needs, check) in EXTRAS.items() if all(hasattr(fmt, need) for need in needs)}
    checks |= {name: check for name, check in PROMISES.items() if name in fmt.promises}
    for name, check in checks.items():
        yield name, _looking_for_violation(fmt, name, check)
    for name, check in _of_training(fmt, fake):
        yield name, _looking_for_violation(fmt, name, check)
    for name, check in PROMISES.items():
        if name not in fmt.promises and fmt.group_size >= _TELLING_GROUP:
            yield f"not-{name}", _looking_for_counterexample(fmt, name, check)


def _of_training(fmt: WeightFormat, fake: FakeQuantize | None) -> Iterator[tuple[str, Check]]:
    reads = [lambda w, fmt: fmt.round(w)] if hasattr(fmt, "round") else []
    if fake is not None and (reads or fake is not fake_quantize):  # the library's own calls `round`
        reads.append(fake)
        yield "gradient", partial(gradient_passes_through, fake)
    if reads:
        yield "fake-equals-real", partial(fake_equals_real, reads)


def _looking_for_violation(fmt: WeightFormat, name: str, check: Check) -> Callable[[], None]:
    breaks = f"{_label(fmt)} breaks {name}"

    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(weights())
    def search(w):
        try:
            check(fmt, w)
        except AssertionError as error:
            raise AssertionError(f"{breaks}: {error}") from None
        except Exception as error:  # a format of somebody else may fail in any way
            raise AssertionError(f"{breaks}: it raised {type(error).__name__}: {error}") from error

    def run():
        try:
            search()
        except Flaky as error:  # Hypothesis tries a violation twice
            raise AssertionError(f"{breaks}, but not at every call with the same weights: {error}") from error

    return run


def _looking_for_counterexample(fmt: WeightFormat, name: str, check: Check) -> Callable[[], None]:
    def breaks(w: Tensor) -> bool:
        try:
            check(fmt, w)
        except AssertionError:
            return True
        return False

    def run():
        searching = settings(max_examples=_COUNTEREXAMPLES, deadline=None, database=None, phases=[Phase.generate])
        try:
            find(weights(), breaks, settings=settings(searching, derandomize=True))
        except NoSuchExample:
            raise AssertionError(
                f"{_label(fmt)} does not promise {name}, but no weights break it; add it to promises"
            ) from None

    return run


def _label(fmt: WeightFormat) -> str:
    return f"{getattr(fmt, 'name', type(fmt).__name__)}-{fmt.bits}bit-g{fmt.group_size}"


__all__ = ["CONTRACT", "PROMISES", "FormatInvariants", "WeightFormat", "check_format", "weights"]
