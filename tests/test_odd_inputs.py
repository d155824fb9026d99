"""Odd inputs of the quant room: each is refused in one sentence that says what is wrong."""

import numpy as np
import pytest
import torch

from bitdistiller.errors import UserError
from bitdistiller.quant import ESTIMATORS, clip_weights, fake_quantize, make_format, search_clip

FORMAT = make_format("int-asym", bits=2, group_size=2)
W, X, BOUNDS = torch.ones(2, 4), torch.ones(3, 4), (-torch.ones(2, 2), torch.ones(2, 2))
# By what it is called in the sentence: every public function that takes such a matrix.
TAKES = {
    "the weight matrix": {
        "quantize": FORMAT.quantize,
        "round": FORMAT.round,
        "search_clip": lambda w: search_clip(w, X, FORMAT),
        "clip_weights": lambda w: clip_weights(w, *BOUNDS, 2),
        **{f"fake_quantize {name}": lambda w, name=name: fake_quantize(w, FORMAT, name) for name in ESTIMATORS},
    },
    "the activation matrix": {"search_clip": lambda x: search_clip(W, x, FORMAT)},
    "a matrix of bounds": {
        "low": lambda low: clip_weights(W, low, BOUNDS[1], 2),
        "high": lambda high: clip_weights(W, BOUNDS[0], high, 2),
    },
}
NO_MATRIX, HOLDS = "has to be a dense floating-point matrix .*, not ", "holds NaN or Inf, or numbers above"
ODD = {
    "NaN": (torch.tensor([[1.0, torch.nan]]), HOLDS),
    "Inf": (torch.tensor([[1.0, torch.inf]]), HOLDS),
    "-Inf in fp16": (torch.tensor([[-torch.inf, 1.0]], dtype=torch.float16), HOLDS),
    "huge": (torch.full((2, 4), 1e31), HOLDS),
    "huge in fp64": (torch.full((2, 4), 1e300, dtype=torch.float64), HOLDS),
    "no rows": (torch.ones(0, 4), r"has to hold numbers, and one of shape \(0, 4\) has none"),
    "no columns": (torch.ones(3, 0), r"has to hold numbers, and one of shape \(3, 0\) has none"),
    "scalar": (torch.tensor(1.0), NO_MATRIX + r"torch.float32 of shape \(\)$"),
    "vector": (torch.ones(4), NO_MATRIX + r"torch.float32 of shape \(4,\)$"),
    "three dimensions": (torch.ones(2, 3, 4), NO_MATRIX + r"torch.float32 of shape \(2, 3, 4\)$"),
    "integers": (torch.ones(2, 4, dtype=torch.int64), NO_MATRIX + "torch.int64"),
    "codes": (torch.ones(2, 4, dtype=torch.uint8), NO_MATRIX + "torch.uint8"),
    "booleans": (torch.ones(2, 4, dtype=torch.bool), NO_MATRIX + "torch.bool"),
    "complex": (torch.ones(2, 4, dtype=torch.complex64), NO_MATRIX + "torch.complex64"),
    "fp8": (torch.ones(2, 4).to(torch.float8_e4m3fn), NO_MATRIX + "torch.float8_e4m3fn"),
    "sparse": (torch.ones(2, 4).to_sparse(), NO_MATRIX + ".* and layout torch.sparse_coo$"),
    "meta": (torch.ones(2, 4, device="meta"), NO_MATRIX + ".* without data$"),
    "numpy": (np.ones((2, 4), dtype=np.float32), NO_MATRIX + "ndarray$"),
    "list": ([[1.0, 2.0]], NO_MATRIX + "list$"),
    "nothing": (None, NO_MATRIX + "NoneType$"),
    "layer": (torch.nn.Linear(4, 2), NO_MATRIX + "Linear$"),
}


def refused(words, function, *arguments):
    with pytest.raises(UserError, match=words) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("what, function", [(what, name) for what, functions in TAKES.items() for name in functions])
def test_odd_matrices(what, function, odd):
    value, words = ODD[odd]
    refused(f"^{what} .*{words}", TAKES[what][function], value)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("arguments, words", [
    (("int-asym", 0, 64), "int-asym has 1 to 8 bits, not 0; change bits"),
    (("int-asym", 9, 64), "1 to 8 bits, not 9"),
    (("int-asym", -1, 64), "1 to 8 bits, not -1"),
    (("int-asym", True, 64), "1 to 8 bits, not True"),
    (("int-asym", 2.0, 64), "1 to 8 bits, not 2.0"),
    (("int-asym", "2", 64), "1 to 8 bits, not '2'"),
    (("int-asym", None, 64), "1 to 8 bits, not None"),
    (("nf-asym", 1, 64), "nf-asym has 2 to 4 bits, not 1"),
    (("binary", 2, 64), "binary has 1 bit, not 2"),
    (("ternary", 1, 64), "ternary has 2 bits, not 1"),
    (("fp4", 2, 64), "unknown format 'fp4': choose one of int-asym"),
    *[(("int-asym", 2, size), f"group size must be a whole number of at least 1, not {size!r}$")
      for size in (0, -4, 2.5, 64.0, True, "64", None)],
])  # fmt: skip
def test_impossible_formats(arguments, words):
    refused(words, make_format, *arguments)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("size", [0, -4, 2.5, True])
def test_group_sizes_of_clipping(size):
    refused("group size must be a whole number of at least 1", clip_weights, W, *BOUNDS, size)


def test_groups_longer_than_a_row_are_the_row():
    """As a shorter last group is; only a whole model with such rows is refused (`quantize_model`)."""
    w = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    longer, exact = (make_format("int-asym", bits=2, group_size=size) for size in (64, 5))
    assert torch.equal(longer.round(w), exact.round(w)) and longer.bits_per_weight(5) == exact.bits_per_weight(5)


class Elsewhere(torch.Tensor):
    device = torch.device("cuda:1")


@pytest.mark.usefixtures("unchecked_shapes")
def test_matrices_that_do_not_fit_together():
    refused(r"w \(out, in\) and x \(tokens, in\), not \(2, 4\) and \(3, 5\)", search_clip, W, torch.ones(3, 5), FORMAT)
    refused("on one device, not on cpu and cuda:1", search_clip, W, X.as_subclass(Elsewhere), FORMAT)
    refused("numbers above 1e[+]15", search_clip, W, 1e16 * X, FORMAT)
    refused(r"has shape \(1, 2\); the groups of w need \(2, 2\)", clip_weights, W, *(b[:1] for b in BOUNDS), 2)
    refused("lower bounds first", clip_weights, W, *BOUNDS[::-1], 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_matrices_of_other_dtypes_are_fine(dtype):
    low, high = search_clip(W.to(dtype), X.to(dtype), FORMAT)
    clipped = clip_weights(W.to(dtype), low, high, 2)
    assert clipped.dtype == fake_quantize(clipped, FORMAT).dtype == dtype and low.dtype == high.dtype == torch.float32


def test_rounding_has_no_gradient_of_its_own():
    """What there is of one goes through `fake_quantize`; through the scales alone it would be another."""
    assert not FORMAT.round(W.clone().requires_grad_()).requires_grad
