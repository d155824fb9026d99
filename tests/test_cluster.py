"""Stages on the machines of a Ray cluster, one of which dies; and a DVC remote that machines share."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from bitdistiller.cluster import client, machine
from bitdistiller.errors import UserError
from tests.test_pipeline import ROOT, pipeline_params
from tests.test_reproduce import FAILURE, NOTE, STAGES, WAIT, change, dvc, finish, make_folder, ran, run, start
from tests.test_warm import are_gone, eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Ray is a matter of luck")

# A machine of the cluster is a raylet with workers of its own; it dies by SIGKILL. Told by lines on standard input.
MACHINES = """
import os, sys, tempfile
with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
    os.environ["RAY_TMPDIR"] = folder  # what `auto` finds on this computer stays as it is
    from ray.cluster_utils import Cluster
    small = {"object_store_memory": 80_000_000}
    cluster = Cluster(True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
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
        variables = {
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_memory_monitor_refresh_ms": "0",
            "RAY_worker_niceness": "0",  # 15 by default: on a busy computer, stages would take ten times as long
        }
        self.environment = os.environ | variables
        command = [sys.executable, "-P", "-c", MACHINES]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, text=True, env=self.environment, start_new_session=True, **pipes)
        self.address = self._process.stdout.readline().strip()
        assert self.address, "Ray did not start"
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


def outputs(folder: Path) -> dict[str, bytes]:
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
            "cmd": NOTE
            + "echo $$ > pid-${item}; mkdir out-${item}; "
            + WAIT.format("go")
            + "echo ${item} > out-${item}/text",
            "outs": ["out-${item}"],
        },
    },
    "whole": {"cmd": NOTE + "cat out-a/text out-b/text > whole.txt", "deps": ["out-a", "out-b"], "outs": ["whole.txt"]},
}


def test_a_machine_that_dies_changes_no_result(machines, tmp_path):
    serial = make_folder(tmp_path / "serial", TWO)
    (serial / "go").touch()
    dvc(serial, "repro")
    for item in "ab":
        (serial / f"pid-{item}").unlink()
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
    assert ran(folder) == sorted(["whole", *(f"half@{item}" for item in "ab" for _ in begun[item])])
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
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_stops_the_machines_too_and_a_rerun_goes_on(machines, tmp_path, number):
    folder = make_folder(tmp_path / "here", TWO)
    process = start(folder, "--ray", machines.address)
    assert eventually(lambda: all((folder / f"pid-{item}").exists() for item in "ab"))
    process.send_signal(number)
    assert are_gone([int((folder / f"pid-{item}").read_text()) for item in "ab"])
    finish(process)
    assert process.returncode not in (0, 2)
    assert not list((folder / ".dvc" / "tmp").glob("cluster-*"))
    ran(folder)
    (folder / "go").touch()
    status, output, error = run(folder, "--ray", machines.address)
    assert status == 0, output + error
    assert ran(folder) == ["half@a", "half@b", "whole"]
    assert "up to date" in dvc(folder, "status")


@pytest.mark.slow
def test_a_kill_loses_nothing_that_was_begun(machines, tmp_path):
    folder = make_folder(tmp_path / "here", TWO)
    process = start(folder, "--ray", machines.address)
    assert eventually(lambda: all((folder / f"pid-{item}").exists() for item in "ab"))
    process.kill()
    process.wait()
    (folder / "go").touch()
    assert eventually(lambda: len(list((folder / ".dvc" / "tmp" / "reproduced").glob("*.yaml"))) == 2)
    process.communicate()
    assert ran(folder) == ["half@a", "half@b"]
    status, output, error = run(folder, "--ray", machines.address)
    assert status == 0, output + error
    assert ran(folder) == ["whole"]


@pytest.mark.slow
def test_machines_may_join_later(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    for name in list(cluster.nodes):
        cluster.kill(name)
    folder = make_folder(tmp_path / "here")
    process = start(folder, "--ray", cluster.address)
    assert any("No machine has room for a stage" in line for line in process.stdout)
    cluster.start("late")
    output, error = finish(process)
    assert process.returncode == 0, output + error
    assert attempts(folder, "sum") == [cluster.nodes["late"]]
    cluster.kill("late")


@pytest.mark.slow
def test_a_preempted_command_is_begun_again(machines, tmp_path):
    once = NOTE + "test -e again || { touch again; kill -TERM $$; sleep 60; }; echo done > out"
    folder = make_folder(tmp_path / "here", {"spot": {"cmd": once, "outs": ["out"]}})
    status, output, error = run(folder, "--ray", machines.address)
    assert status == 0, output + error
    assert ran(folder) == ["spot", "spot"]
    never = make_folder(tmp_path / "there", {"spot": {"cmd": "kill -TERM $$", "outs": ["out"]}})
    status, _, error = run(never, "--ray", machines.address, "--retries", "1")
    assert status == 2 and "its machine was lost 2 times out of 2" in error.splitlines()[-1]


def test_without_a_cluster_there_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(client.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'bitdistiller\[cluster\]'"):
        client.Cluster("auto", client.Resources(1), tmp_path)


@pytest.mark.parametrize("address", ["", ":6379", "somewhere"])
def test_an_address_has_a_host_and_a_port(tmp_path, address):
    with pytest.raises(UserError, match="auto, local or HOST:PORT"):
        client.Cluster(address, client.Resources(1), tmp_path)


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


@pytest.mark.slow
def test_a_second_machine_reuses_what_the_first_computed(tmp_path):
    first, second = (make_clone(tmp_path / name, tmp_path / "remote") for name in ("first", "second"))
    status, output, error = run(first, "--remote", "shared")
    assert status == 0 and ran(first) == EVERY, output + error
    status, output, error = run(second, "--remote", "shared")
    assert status == 0 and not ran(second), output + error
    assert outputs(first) == outputs(second)
    assert "up to date" in dvc(second, "status")


@pytest.mark.slow
def test_a_remote_gets_what_was_computed_without_it(tmp_path):
    first, second = (make_clone(tmp_path / name, tmp_path / "remote") for name in ("first", "second"))
    assert run(first)[0] == 0 and ran(first) == EVERY
    status, output, error = run(first, "--remote", "shared")
    assert status == 0 and not ran(first), output + error
    change(second, common=7)
    status, output, error = run(second, "--remote", "shared")
    assert status == 0 and ran(second) == ["count@a", "count@b"], output + error
    (first / "params.yaml").write_text((second / "params.yaml").read_text())
    assert run(first, "--remote", "shared")[0] == 0 and not ran(first)
    assert outputs(first) == outputs(second)
    shutil.rmtree(tmp_path / "remote")
    (tmp_path / "remote").touch()
    change(second, common=8)
    status, _, error = run(second, "--remote", "shared")
    assert status == 2 and "the DVC remote cannot be used (NotADirectoryError" in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_an_unknown_remote_is_one_sentence(tmp_path):
    status, _, error = run(make_folder(tmp_path / "here"), "--remote", "nobody")
    assert status == 2 and error.startswith("error: DVC knows no remote nobody here") and error.count("\n") == 1


@pytest.mark.slow
def test_machines_with_clones_of_their_own_share_a_remote(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    here, *clones = (make_clone(tmp_path / name, tmp_path / "remote") for name in ("here", "first", "second"))
    serial = make_clone(tmp_path / "serial", tmp_path / "nothing")
    dvc(serial, "repro")
    for name in list(cluster.nodes):
        cluster.kill(name)
    for clone in clones:
        cluster.start(clone.name, clone)

    status, _, error = run(here, "--ray", cluster.address)
    assert status == 2 and "does not share the folder" in error.splitlines()[-1]

    status, output, error = run(here, "--ray", cluster.address, "--remote", "shared")
    assert status == 0, output + error
    assert not ran(here)
    did = [ran(clone) for clone in clones]
    assert all(did) and sorted([*did[0], *did[1]]) == EVERY
    assert outputs(here) == outputs(serial)
    assert "up to date" in dvc(here, "status")

    change(here, common=7)
    status, _, error = run(here, "--ray", cluster.address, "--remote", "shared", "count@a")
    assert status == 2 and "differs in common (commit unknown, asked for unknown)" in error
    assert error.count("\n") == 1
    for name in list(cluster.nodes):
        cluster.kill(name)


@pytest.mark.slow
def test_a_student_whose_machine_dies_is_the_same_to_the_bit(machines, tmp_path, tiny_model, tiny_text):
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    params = pipeline_params(tiny_model, tiny_text)
    params["runs"]["student2"] |= {"steps": 400, "checkpoint_every": 20, "validate_every": 200}
    folders = {}
    for name in ("serial", "ray"):
        folder = folders[name] = make_folder(tmp_path / name, stages)
        (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        shutil.copytree(ROOT / "bitdistiller", folder / "bitdistiller", ignore=shutil.ignore_patterns("weights"))
    dvc(folders["serial"], "repro", "evaluate@student2")

    folder = folders["ray"]
    process = start(folder, "--ray", machines.address, "evaluate@student2")
    assert eventually(lambda: list((folder / "artifacts" / "checkpoints").glob("student2/*")))
    node = attempts(folder, "train@student2")[0]
    machines.kill(next(name for name in machines.nodes if machines.nodes[name] == node))
    output, error = finish(process)
    assert process.returncode == 0, output + error
    begun = attempts(folder, "train@student2")
    assert begun[0] == node and begun[1:] == list(machines.nodes.values())
    assert "up to date" in dvc(folder, "status", "evaluate@student2")

    students = [folder / "artifacts" / "students" / "student2" for folder in folders.values()]
    weights = [{path.name: path.read_bytes() for path in student.glob("*.safetensors")} for student in students]
    assert weights[0] and weights[0] == weights[1]
    items = [(folder / "results" / "runs" / "student2" / "items.csv").read_bytes() for folder in folders.values()]
    assert items[0] == items[1]


# --- what one machine does, without Ray ---


@pytest.fixture
def request_here(tmp_path) -> dict:
    """A request for a folder that this machine shares with itself."""
    (tmp_path / "token").touch()
    (tmp_path / "logs").mkdir()
    return {
        "name": "stage", "commands": ["echo made > out; echo said"], "root": str(tmp_path), "here": ".", "folder": ".",
        "reads": [], "writes": ["out"], "token": "token", "log": "logs/stage.log", "remote": None,
    }  # fmt: skip


def ask(request: dict, **changes) -> dict:
    return json.loads(machine.run_stage(json.dumps(request | changes)))


def test_an_attempt_begins_without_outputs(request_here, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "half").touch()
    answer = ask(request_here)
    assert (answer["status"], answer["made"]) == (0, [str(tmp_path / "out")])
    assert (tmp_path / "out").read_text() == "made\n"
    assert (tmp_path / "logs" / "stage.log").read_text().splitlines()[1:] == ["said"]


@pytest.mark.parametrize("command, status", [("exit 3", 3), ("kill -9 $$", 137), ("cat; exit 4", 4)])
def test_the_status_is_that_of_a_shell(request_here, command, status):
    assert ask(request_here, commands=[command, "touch never"])["status"] == status
    assert not Path(request_here["root"], "never").exists()


def test_sigterm_from_elsewhere_means_another_machine(request_here):
    with pytest.raises(machine.PreemptedError):
        ask(request_here, commands=["kill -TERM $$"])


def test_a_guard_that_is_killed_means_another_machine(request_here, tmp_path):
    """Ray kills the guard along with its worker, and the worker may live long enough to see it."""
    parent = "$(cut -d' ' -f4 /proc/$PPID/stat)"  # of the shell's parent, which is the guard's child
    with pytest.raises(machine.PreemptedError):
        ask(request_here, commands=[f"echo $$ > pid; kill -9 {parent}; " + WAIT.format("never")])
    assert are_gone([int((tmp_path / "pid").read_text())])


def test_a_machine_without_the_project_says_so(request_here, monkeypatch, tmp_path):
    assert "does not share the folder" in ask(request_here, token="other")["error"]
    monkeypatch.setenv(machine.CLONE, str(tmp_path / "nowhere"))
    assert "has no clone of the project at" in ask(request_here, token="other", remote="shared")["error"]


def test_a_second_attempt_waits_for_the_first(request_here, tmp_path, monkeypatch):
    first = "touch begun; " + WAIT.format("go") + "echo first >> order"
    attempt = threading.Thread(target=ask, args=(request_here,), kwargs={"commands": [first]})
    attempt.start()
    assert eventually((tmp_path / "begun").exists)
    with monkeypatch.context() as patch:
        patch.setattr(machine, "_OTHER_ATTEMPT_SECONDS", 0.1)
        assert "another machine still runs stage stage" in ask(request_here)["error"]
    threading.Timer(0.3, (tmp_path / "go").touch).start()
    assert ask(request_here, commands=["echo second >> order"])["status"] == 0
    attempt.join()
    assert (tmp_path / "order").read_text() == "first\nsecond\n"


def test_files_of_another_machine_are_waited_for(tmp_path):
    threading.Timer(0.3, (tmp_path / "late").touch).start()
    machine.wait_for([tmp_path / "late"])
    assert (tmp_path / "late").exists()


@pytest.mark.parametrize("killed", ["starter", "guard"])
def test_a_command_ends_with_its_starter(tmp_path, killed):
    """Also if Ray kills the guard, which is a direct child of its worker, along with the worker."""
    command = f"trap 'touch {tmp_path}/asked; exit' INT; echo $$ > {tmp_path}/pid; while :; do sleep 0.05; done"
    starter = subprocess.Popen(
        [sys.executable, "-P", machine.guard.__file__, "/bin/sh", "-c", command], stdin=subprocess.PIPE
    )
    assert eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    if killed == "guard":
        starter.kill()
    starter.stdin.close()
    starter.wait()
    assert are_gone([int((tmp_path / "pid").read_text())])
    assert (tmp_path / "asked").exists()
