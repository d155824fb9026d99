"""Every attack ends in its own verdict, reaches nothing of the host, and leaves no process and no file."""

import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from bitdistiller.sandbox import Limits, run_program
from bitdistiller.sandbox.attacks import ATTACKS, LIMITS, run_attacks, targets
from tests.isolation import needs_isolation
from tests.test_sandbox import processes, wait_until

pytestmark = needs_isolation

TRACE = "attack-was-here"  # in the name of everything that an attack tries to leave
# Endless ones take all their time, so here they get less; it also marks the command lines of these workers.
BRIEF = replace(LIMITS, seconds=1.84375, cpu_seconds=3)


def traces() -> list[str]:
    """What attacks would have left in the places that they try, and where any program leaves files."""
    library = Path(sys.modules["os"].__file__).parent
    places = [Path("/"), Path.home(), Path.cwd(), library, *map(Path, ("/tmp", "/var/tmp", "/dev/shm", "/dev"))]
    return [str(path) for place in places if place.is_dir() for path in place.iterdir() if is_trace(path.name)]


def is_trace(name: str) -> bool:
    return name.startswith((TRACE, "attack_was_here", ".attack-target"))


def host() -> dict[str, str]:
    """What must be the same afterwards: mounts, memory shared by key, name of the machine."""
    names = ["/proc/self/mountinfo", "/proc/sysvipc/shm", "/proc/sys/kernel/hostname"]
    return {name: Path(name).read_text() for name in names}


def run_and_look(attacks):
    """Verdict and detail of each attack, by name, once nothing of them is left."""
    before = host()
    outcomes, touched = run_attacks(attacks, BRIEF)
    assert touched == []
    assert processes(f'"seconds": {BRIEF.seconds}') == []
    assert traces() == []
    assert host() == before
    return {attack.name: (outcome.verdict, outcome.detail) for attack, outcome in zip(attacks, outcomes, strict=True)}


QUICK = [attack for attack in ATTACKS if attack.verdict != "timeout"]
ENDLESS = [attack for attack in ATTACKS if attack.verdict == "timeout"]


@pytest.fixture(scope="module")
def quick():
    return run_and_look(QUICK)


@pytest.mark.parametrize("attack", QUICK, ids=lambda attack: attack.name)
def test_attack_ends_in_its_own_verdict(attack, quick):
    assert quick[attack.name][0] == attack.verdict, quick[attack.name][1]


@pytest.mark.slow
def test_endless_attacks_are_ended():
    assert {name: verdict for name, (verdict, _) in run_and_look(ENDLESS).items()} == dict.fromkeys(
        [attack.name for attack in ENDLESS], "timeout"
    )


def test_there_are_many_attacks_with_different_names():
    names = Counter(attack.name for attack in ATTACKS)
    assert len(names) >= 30
    assert names.most_common(1)[0][1] == 1


def test_no_attack_may_pass():
    assert "passed" not in {attack.verdict for attack in ATTACKS}


def test_attacks_are_limited_so_that_even_an_escaped_one_is_harmless():
    assert LIMITS.memory_bytes <= Limits().memory_bytes <= 512 << 20
    assert LIMITS.processes <= Limits().processes <= 16


def test_targets_are_reachable_for_an_ordinary_process_and_notice_it():
    """Otherwise it would mean nothing that no attack reaches them."""
    with targets() as aims:
        script = (
            "import os, socket\n"
            f"assert os.environ[{aims.places['variable']!r}] == open({aims.places['file']!r}).read()\n"
            f"os.write({aims.places['fd']}, b'x')\n"
            f"socket.create_connection(('127.0.0.1', {aims.places['port']}))\n"
            f"for name in ({aims.places['unix']!r}, '\\0' + {aims.places['abstract']!r}):\n"
            "    socket.socket(socket.AF_UNIX).connect(name)\n"
        )
        subprocess.run([sys.executable, "-c", script], check=True, close_fds=False)
    assert aims.touched == ["files", "port", "abstract", "unix"]


def test_the_search_for_processes_finds_what_runs_in_a_sandbox():
    """Otherwise it would mean nothing that it finds none."""
    limits = Limits(seconds=2.71875)
    source = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(1000)\ntime.sleep(1000)"
    thread = threading.Thread(target=run_program, args=(source, "", limits))
    thread.start()
    assert wait_until(lambda: len(processes('"seconds": 2.71875')) == 5)
    thread.join()
    assert processes('"seconds": 2.71875') == []
