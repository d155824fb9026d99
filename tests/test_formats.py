"""The comparison of formats: its numbers against what is known of normal weights, and its command."""

import math

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from bitdistiller.analysis.formats import compare, describe, sources
from bitdistiller.cli import app
from bitdistiller.quant import make_format


def test_one_bit_facts_about_normal_weights():
    normal = sources(None, seed=0)["normal"]
    binary = describe(normal, make_format("binary", bits=1, group_size=128))
    assert binary["zeros"] == 0
    assert binary["relative_error"] == pytest.approx(1 - 2 / math.pi, abs=0.01)  # mean|w| = sqrt(2 / pi)
    assert binary["entropy"] == pytest.approx(1, abs=0.02)
    assert binary["bits_per_weight"] == 1 + 16 / 128
    affine = describe(normal, make_format("int-asym", bits=1, group_size=128))
    assert affine["zeros"] > 0.95 and affine["entropy"] < 0.3
    clipped = describe(normal, make_format("int-asym", bits=1, group_size=128), clip=True)
    assert clipped["relative_error"] < affine["relative_error"] and clipped["zeros"] < affine["zeros"]


def test_describe_agrees_with_a_count_by_hand():
    w = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 0.0, -3.0]])
    found = describe([w], make_format("int-asym", bits=1, group_size=4))  # 1 -> 0, 2 -> 3; zero is code 1 below
    assert found["bias"] == 0
    assert found["relative_error"] == pytest.approx(2 / 23) and found["zeros"] == 5 / 8
    quarter = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert found["entropy"] == pytest.approx((1 + quarter) / 2) and found["bits_per_weight"] == 1 + 17 / 4


def test_levels_on_one_side_of_zero_move_the_mean():
    nf2, int2 = (make_format(name, bits=2, group_size=64) for name in ("nf-asym", "int-asym"))
    w = torch.tensor([[-1.0, 0.2, 0.2, 1.0]])  # 0.2 -> 0.338, the lower one of two levels above zero
    assert describe([w], nf2)["bias"] == pytest.approx(2 * 0.1379 / 4 / math.sqrt(2.08 / 4), abs=1e-4)
    normal = sources(None, seed=0)["normal"]
    for matrix in (normal[0], -normal[0]):
        assert describe([matrix], nf2)["bias"] > 0.05
        assert abs(describe([matrix], int2)["bias"]) < 0.005


def test_laplace_weights_are_laplace():
    laplace = sources(None, seed=0)["Laplace"][0]
    assert laplace.abs().mean() == pytest.approx(1, abs=0.01) and laplace.var() == pytest.approx(2, abs=0.05)
    assert laplace.mean() == pytest.approx(0, abs=0.01)


def test_formats_without_a_range_have_no_clipped_row():
    rows = list(compare(group_size=64, model=None, bits=[1]))
    assert {row["format"] for row in rows if row["clipped"]} == {"int-asym"}
    assert {row["format"] for row in rows} == {"int-asym", "binary", "binary-shifted"}


def test_command_prints_a_table_and_writes_csv(tmp_path):
    out = tmp_path / "formats.csv"
    done = CliRunner().invoke(
        app, ["formats", "--model", "none", "--bits", "1", "--group-size", "64", "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    assert "binary-shifted" in done.stdout and "relative_error" in done.stdout
    table = pd.read_csv(out)
    assert list(table.columns[:4]) == ["weights", "clipped", "format", "bits"] and len(table) == 8
