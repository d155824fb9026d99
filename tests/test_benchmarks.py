"""Benchmarks run: what they measure is nobody's test, but that they still measure is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = {
    "step": ["--model", "micro-1m", "--tokens", "128", "--length", "64", "--repeats", "1"],
    "decode": ["--model", "micro-1m", "--rows", "3", "--shared", "80", "--own", "5", "--new", "4", "--repeats", "1"],
    "clip": ["--shape", "16", "128", "--rows", "1", "--tokens", "32"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_benchmark_compares_ours_with_others(tmp_path, name):
    command = [
        sys.executable,
        f"benchmarks/{name}.py",
        *SMALL[name],
        "--threads",
        "1",
        "--out",
        str(tmp_path / "found.json"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    ratios = [value for key, value in found.items() if key.startswith(("ours_over_", "times_faster"))]
    assert ratios and min(ratios) > 0 and found["environment"]["commit"]


def test_every_benchmark_is_run_by_a_test():
    """That of the plan, which compares a prediction with a measurement, by its own."""
    assert {path.stem for path in (ROOT / "benchmarks").glob("*.py")} == {*SMALL, "measure", "plan"}
    assert "benchmarks" in (ROOT / "tests" / "test_plan.py").read_text()
