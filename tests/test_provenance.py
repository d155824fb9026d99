"""What a stage costs: energy counters that exist, start again, or may not be read."""

import time

import pytest

from bitdistiller import provenance
from bitdistiller.provenance import Stopwatch


@pytest.fixture
def counters(tmp_path, monkeypatch):
    """A machine with two packages; each has a part, and a domain for the whole board holds both."""
    monkeypatch.setattr(provenance, "POWERCAP", tmp_path)
    monkeypatch.setattr(provenance, "_POLL_SECONDS", 0.01)
    names = {"0": "package-0", "0:0": "core", "1": "package-1", "1:0": "dram", "2": "psys"}
    for domain, name in names.items():
        folder = tmp_path / f"intel-rapl:{domain}"
        folder.mkdir()
        (folder / "name").write_text(f"{name}\n")
        (folder / "energy_uj").write_text("1000000\n")
        (folder / "max_energy_range_uj").write_text("10000000\n")
    return lambda domain, joules: _replace(tmp_path / f"intel-rapl:{domain}" / "energy_uj", joules)


def _replace(path, joules):
    staging = path.with_name("staging")
    staging.write_text(f"{int(joules * 1e6)}\n")
    staging.replace(path)


def test_the_joules_of_all_packages_add_up(counters):
    watch = Stopwatch()
    assert watch.cost().joules == 0
    for domain, joules in (("0", 3), ("0:0", 9), ("1", 1.5), ("1:0", 9), ("2", 9)):
        counters(domain, joules)
    assert watch.cost().joules == 2.5
    assert Stopwatch().cost().joules == 0


def test_a_counter_that_starts_again_goes_on(counters):
    watch = Stopwatch()
    counters("0", 0.5)
    assert watch.cost().joules == 9.5


def test_a_counter_that_starts_again_several_times_is_polled(counters):
    watch, joules = Stopwatch(), 1
    for _ in range(6):  # 24 J, more than twice around
        joules += 4
        counters("0", joules % 10)
        while watch._joules._last[provenance.POWERCAP / "intel-rapl:0"] != joules % 10 * 1000000:
            time.sleep(0.001)
    assert watch.cost().joules == 24


def test_counters_that_cannot_be_read_give_no_joules(counters, tmp_path):
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()  # half of the machine would be missing
    assert Stopwatch().cost().joules is None


def test_a_machine_without_counters_gives_no_joules(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "POWERCAP", tmp_path / "none")
    assert Stopwatch().cost().joules is None
