"""Stages on the machines of a Ray cluster, one of which dies; and a DVC remote that machines share."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from bitdistiller.cluster import client, machine
from bitdistiller.errors import UserError
from tests.test_pipeline import ROOT, pipeline_params
from tests.test_reproduce import FAILURE, NOTE, PARAMS, STAGES, WAIT, dvc, finish, make_folder, ran, run, start
from tests.test_warm import are_gone, eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Ray is a matter of luck")

# A machine of the cluster is a raylet with workers of its own; it dies by SIGKILL. Told by lines on standard input.
MACHINES = """
import sys, tempfile
from ray.cluster_utils import Cluster
with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
    small = {"object_store_memory": 80_000_000}
    cluster = Cluster(True, head_node_args={"num_cpus": 0, "include_dashboard": False, "temp_dir": folder, **small})
    machines = {}
    print(cluster.address, flush=True)
    for line in sys.stdin:
        order, name, *clone = line.split()
        if order == "start":
            variables = {"BITDISTILLER_CLONE": clone[0]} if clone else None
            machines[name] = cluster.add_node(num_cpus=1, env_vars=variables, **small)
        else:
            machines.pop(name).kill_raylet()
        print("done", machines[name].node_id[:8] if name in machines else "", flush=True)
    cluster.shutdown()
"""


class Machines:
    """A Ray cluster on this computer, whose head runs no stages."""

    def __init__(self):
        variables = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0"}
        self.environment = os.environ | variables
        command = [sys.executable, "-P", "-c", MACHINES]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, text=True, env=self.environment, start_new_session=True, **pipes)
        self.address = self._process.stdout.readline().strip()
        self.nodes: dict[str, str] = {}

    def start(self, name: str, clone: Path | None = None) -> None:
        self.nodes[name] = self._order(f"start {name} {clone or ''}")

    def kill(self, name: str) -> None:
        self._order(f"kill {name}")
        del self.nodes[name]

    def _order(self, line: str) -> str:
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        word, _, node = self._process.stdout.readline().partition(" ")
        assert word.strip() == "done"
        return node.strip()

    def end(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    machines = Machines()
    yield machines
    machines.end()


@pytest.fixture
def machines(cluster, monkeypatch) -> Iterator[Machines]:
    """The cluster with machines `a` and `b`, whichever of them the test before has killed."""
    for name in {"a", "b"} - set(cluster.nodes):
        cluster.start(name)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    return cluster


def outputs(folder: Path, stages: dict = STAGES) -> dict[str, bytes]:
    """Everything that a folder's stages wrote, and its lock."""
    names = {path for path in folder.rglob("*") if path.is_file()} - set((folder / ".dvc").rglob("*"))
    kept = {path.relative_to(folder) for path in names}
    return {str(path): (folder / path).read_bytes() for path in kept if path.parts[0] not in ("ran", "artifacts")}


def attempts(folder: Path, stage: str) -> list[str]:
    """The nodes on which a stage was begun, by its log."""
    lines = (folder / "artifacts" / "logs" / f"{stage.replace(':', '_')}.log").read_text().splitlines()
    return [line.partition("(node ")[2][:8] for line in lines if line.startswith("On ")]


# Two stages that each wait for the file `go`, and one that wants both.
TWO = {
    "half": {
        "foreach": ["a", "b"],
        "do": {
            "cmd": NOTE + "echo $$ > pid-${item}; mkdir out-${item}; " + WAIT.format("go") + "echo ${item} > out-${item}/text",
            "outs": ["out-${item}"],
        },
    },
    "whole": {"cmd": NOTE + "cat out-a/text out-b/text > whole.txt", "deps": ["out-a", "out-b"], "outs": ["whole.txt"]},
}  # fmt: skip


def test_a_machine_that_dies_changes_no_result(machines, tmp_path):
    serial = make_folder(tmp_path / "serial", TWO)
    (serial / "go").touch()
    dvc(serial, "repro")
    (serial / "pid-a").unlink(), (serial / "pid-b").unlink()

    folder = make_folder(tmp_path / "here", TWO)
    process = start(folder, "--ray", machines.address)
    pids = [folder / "pid-a", folder / "pid-b"]
    assert eventually(lambda: all(pid.exists() and pid.read_text() for pid in pids))
    victims = {attempts(folder, f"half@{item}")[0]: int((folder / f"pid-{item}").read_text()) for item in "ab"}
    assert set(victims) == set(machines.nodes.values())
    dead = machines.nodes["a"]
    machines.kill("a")
    assert are_gone([victims[dead]])
    (folder / "go").touch()
    output, error = finish(process)
    assert process.returncode == 0, output + error
    begun = {item: attempts(folder, f"half@{item}") for item in "ab"}
    assert sorted(begun.values(), key=len) == [[machines.nodes["b"]], [dead, machines.nodes["b"]]]
    assert sorted(ran(folder)) == sorted(["half@a", "half@b", "whole", *(f"half@{i}" for i in "ab" if len(begun[i]) == 2)])
    for pid in pids:
        pid.unlink()
    assert outputs(folder) == outputs(serial)
    assert "up to date" in dvc(folder, "status")
    assert "up to date" in dvc(folder, "repro") and not ran(folder)


@pytest.mark.slow
def test_a_failure_is_one_sentence_and_what_is_done_stays_done(machines, tmp_path):
    folder = make_folder(tmp_path / "here", FAILURE)
    status, output, error = run(folder, "--ray", machines.address)
    log = Path("artifacts") / "logs" / "bad.log"
    assert (status, error) == (2, f"error: stage bad failed: no such model ({log})\n"), output
    assert ran(folder) == ["bad", "good"]
    (folder / "mended").touch()
    assert run(folder, "--ray", machines.address)[0] == 0
    assert ran(folder) == ["after", "bad", "later"]
    assert "up to date" in dvc(folder, "status")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interruption_stops_the_machines_too_and_a_rerun_goes_on(machines, tmp_path, number):
    folder = make_folder(tmp_path / "here", TWO)
    process = start(folder, "--ray", machines.address)
    assert eventually(lambda: all((folder / f"pid-{item}").exists() for item in "ab"))
    process.send_signal(number)
    assert are_gone([int((folder / f"pid-{item}").read_text()) for item in "ab"])
    finish(process)
    assert process.returncode not in (0, 2)
    ran(folder)
    (folder / "go").touch()
    status, output, error = run(folder, "--ray", machines.address)
    assert status == 0, output + error
    assert ran(folder) == ["half@a", "half@b", "whole"]
    assert "up to date" in dvc(folder, "status")


@pytest.mark.slow
def test_a_preempted_command_is_begun_again(machines, tmp_path):
    once = NOTE + "test -e again || { touch again; kill -TERM $$; sleep 60; }; echo done > out"
    folder = make_folder(tmp_path / "here", {"spot": {"cmd": once, "outs": ["out"]}})
    status, output, error = run(folder, "--ray", machines.address)
    assert status == 0, output + error
    assert ran(folder) == ["spot", "spot"]
    status, _, error = run(make_folder(tmp_path / "there", {"spot": {"cmd": "kill -TERM $$", "outs": ["out"]}}),
                           "--ray", machines.address, "--retries", "1")
    assert status == 2 and "its machine was lost 2 times out of 2" in error.splitlines()[-1]


def test_without_a_cluster_there_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(client.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'bitdistiller\[cluster\]'"):
        client.Cluster("auto", client.Resources(1), tmp_path)


@pytest.mark.slow
def test_a_wrong_address_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    status, _, error = run(make_folder(tmp_path / "here"), "--ray", "127.0.0.1:1")
    assert status == 2 and error.startswith("error: there is no Ray cluster at 127.0.0.1:1: ")
    assert error.count("\n") == 1


# --- a shared remote ---

# `count` has outputs that git keeps and DVC's own run cache would not restore elsewhere; so has `table`.
SHARED = STAGES | {
    "table": {
        "cmd": NOTE + "cat sum.txt > table.csv; cp -r counts copies",
        "deps": ["sum.txt", "counts"],
        "outs": [{"table.csv": {"cache": False}}, "copies"],
    }
}
EVERY = ["count@a", "count@b", "sum", "table", "text@a", "text@b"]


def make_clone(folder: Path, remote: Path) -> Path:
    make_folder(folder, SHARED)
    dvc(folder, "remote", "add", "--quiet", "shared", str(remote))
    return folder


def test_a_second_machine_reuses_what_the_first_computed(tmp_path):
    first, second = (make_clone(tmp_path / name, tmp_path / "remote") for name in ("first", "second"))
    assert run(first)[0] == 0 and ran(first) == EVERY
    status, output, error = run(first, "--remote", "shared")
    assert status == 0 and not ran(first), output + error
    status, output, error = run(second, "--remote", "shared")
    assert status == 0 and not ran(second), output + error
    assert outputs(first) == outputs(second)
    assert "up to date" in dvc(second, "status")
    (second / "params.yaml").write_text(yaml.safe_dump(PARAMS | {"common": 7}, sort_keys=False))
    assert run(second, "--remote", "shared")[0] == 0 and ran(second) == ["count@a", "count@b"]
    (first / "params.yaml").write_text((second / "params.yaml").read_text())
    assert run(first, "--remote", "shared")[0] == 0 and not ran(first)
    status, _, error = run(second, "--remote", "nobody")
    assert status == 2 and error.startswith("error: DVC knows no remote nobody here") and error.count("\n") == 1


@pytest.mark.slow
def test_machines_with_clones_of_their_own_share_a_remote(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    here, clone, other = (make_clone(tmp_path / name, tmp_path / "remote") for name in ("here", "clone", "other"))
    serial = make_clone(tmp_path / "serial", tmp_path / "none")
    dvc(serial, "repro")
    for name in list(cluster.nodes):
        cluster.kill(name)
    cluster.start("c", clone)
    status, output, error = run(here, "--ray", cluster.address)
    assert status == 2 and "does not share the folder" in error.splitlines()[-1]
