"""One run on several processes, and through every interruption: it ends with what an undisturbed one ends with."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from bitdistiller.config import load_params
from bitdistiller.distill.clipping import search_model
from bitdistiller.distill.trainer import train
from bitdistiller.errors import UserError
from bitdistiller.training.processes import launch
from tests import tiny

COMMAND = [sys.executable, "-m", "bitdistiller", "train", "student"]
CONFIGURATION = Path(__file__).parent.parent / "profiles" / "accelerate" / "cpu-2.yaml"
RUN = {"micro_batches": 4, "batch_tokens": 256}


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_model, tiny_text):
    """Artifacts folder with data, teacher cache and clipping bounds of the tiny world."""
    folder = tmp_path_factory.mktemp("world") / "artifacts"
    params = tiny.params(tiny_model, tiny_text)
    tiny.make_teacher(params, folder)
    search_model(params.quantizers["int2"], folder / "clip" / "int2.safetensors")
    return folder


@pytest.fixture
def scale(world, tiny_model, tiny_text, tmp_path):
    """Makes a folder of a scale, ready to train in; keyword arguments change its run."""

    def make(name: str, quantizer: dict | None = None, **run) -> Path:
        folder = tmp_path / name
        (folder / "artifacts").mkdir(parents=True)
        for inputs in ("text", "teacher", "clip"):
            (folder / "artifacts" / inputs).symlink_to(world / inputs)
        spread(folder, 1, tiny.make_params(tiny_model, tiny_text, **RUN | run))
        return folder

    return make


def spread(folder: Path, processes: int, params: dict | None = None, **run) -> None:
    """Let the next command in ``folder`` use that many processes."""
    path = folder / "params.yaml"
    params = params or yaml.safe_load(path.read_text())
    params.pop("accelerate", None)
    params["runs"]["student"] |= run
    if processes > 1:
        configuration = yaml.safe_load(CONFIGURATION.read_text()) | {"num_processes": processes}
        (folder / "accelerate.yaml").write_text(yaml.safe_dump(configuration))
        params["accelerate"] = "accelerate.yaml"
    path.write_text(yaml.safe_dump(params))


def start(folder: Path) -> subprocess.Popen:
    return subprocess.Popen(COMMAND, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def here(folder: Path) -> dict:
    """Train to the end in this process, undisturbed; the record."""
    return train("student", load_params(folder / "params.yaml"), folder / "artifacts").model_dump()


def run(folder: Path) -> dict:
    """Train to the end by the command; the record."""
    done = subprocess.run(COMMAND, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder / "printed").write_text(done.stdout)
    return json.loads(record(folder).read_text())


def gradient_norms(folder: Path) -> list[float]:
    """Of every step of a run by the command. AdamW would hide a gradient that is twice what it should be."""
    return [float(norm) for norm in re.findall(r"'grad_norm': '([\d.e-]+)'", (folder / "printed").read_text())]


def record(folder: Path) -> Path:
    return folder / "results" / "runs" / "student" / "train.json"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "artifacts" / "students" / "student" / "model.safetensors")


def checkpoints(folder: Path) -> list[int]:
    """Steps of the finished checkpoints."""
    found = folder.glob("artifacts/checkpoints/student/*/checkpoint-*/complete.json")
    return sorted(int(path.parent.name.rpartition("-")[2]) for path in found)


def wait_for(folder: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while step not in checkpoints(folder) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None and step in checkpoints(folder), process.communicate()


def same_curves(one: dict, other: dict) -> None:
    """Up to the order of additions, which may tip the rounding of a weight: held-out text notices a single one."""
    for mine, theirs in zip(one["curve"], other["curve"], strict=True):
        for key in ("loss", "validation_perplexity", "validation_nll"):
            share = 1e-6 if mine["step"] < 2 else 1e-2  # weights are the same until the first step is made
            assert mine[key] == (theirs[key] and pytest.approx(theirs[key], rel=share)), (mine, theirs)
    assert one["tokens"] == other["tokens"]


def same_weights(one: Path, other: Path, tolerance: float = 0.0) -> None:
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=tolerance)


def test_two_processes_with_sharded_weights_train_as_one_does(scale):
    alone, sharded = scale("alone"), scale("sharded", sharding="full")
    spread(sharded, 2)
    trained = run(sharded)
    assert trained["processes"] == 2
    same_curves(trained, here(alone))
    same_weights(sharded, alone, tolerance=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("change", [
    {}, {"sharding": "full", "activation_checkpointing": True}, {"loss": "tsld"}, {"loss": "ce"},
], ids=["replicated", "recomputed", "tsld", "cross-entropy"])  # fmt: skip
@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_gives_the_same_curve(scale, processes, change):
    alone, together = scale("alone", **change), scale("together", **change)
    spread(together, processes)
    same_curves(run(together), run(alone))
    assert len(gradient_norms(alone)) == 6
    assert gradient_norms(together) == pytest.approx(gradient_norms(alone), rel=2e-2)
    mine, theirs = weights(together), weights(alone)
    apart = {name: (mine[name] - theirs[name]).abs().mean().item() for name in theirs}
    assert max(apart.values()) < 1e-5, apart  # six steps move a weight by up to 6e-3


def test_recomputed_activations_change_nothing(scale):
    kept, recomputed = scale("kept"), scale("recomputed", activation_checkpointing=True)
    same_curves(here(kept), here(recomputed))
    same_weights(kept, recomputed)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "full"])
@pytest.mark.parametrize("before, after", [(2, 1), (1, 2), (2, 4)])
def test_a_run_goes_on_with_another_number_of_processes(scale, before, after, sharding):
    """SIGTERM after the second step, then the same command under another configuration."""
    whole, moved = scale("whole", steps=12), scale("moved", steps=12)
    spread(moved, before, sharding=sharding if before > 1 else "none")
    process = start(moved)
    wait_for(moved, 2, process)
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 143 and "SIGTERM" in errors and "Traceback" not in errors
    spread(moved, after, sharding=sharding if after > 1 else "none")
    trained = run(moved)
    here(whole)
    assert trained["resumed_at"] >= 2 and trained["processes"] == after
    same_weights(moved, whole, tolerance=1e-5)


def test_sigterm_ends_a_run_with_a_checkpoint_and_a_sentence(scale):
    whole, stopped = (scale(name, steps=40, checkpoint_every=10) for name in ("whole", "stopped"))
    process = start(stopped)
    wait_for(stopped, 10, process)
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 143, errors
    step = checkpoints(stopped)[-1]
    assert f"stopped by SIGTERM after step {step} of 40" in errors and "Traceback" not in errors
    assert here(stopped)["resumed_at"] == step
    here(whole)
    same_weights(stopped, whole)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_a_killed_process_ends_the_run_and_the_command_goes_on(scale, sharding):
    """And ends with the very weights of two processes that nobody killed."""
    whole, killed = (scale(name, steps=40, sharding=sharding) for name in ("whole", "killed"))
    spread(whole, 2)
    spread(killed, 2)
    process = start(killed)
    wait_for(killed, 4, process)
    victim = [pid for pid in children(process.pid) if "train" in command_line(pid)][-1]
    os.kill(victim, signal.SIGKILL)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 2
    (sentence,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "SIGKILL" in sentence and "goes on from the last checkpoint" in sentence
    assert not children(process.pid)
    assert run(killed)["resumed_at"] >= 4
    run(whole)
    same_weights(killed, whole)


def children(pid: int) -> list[int]:
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(line) for line in done.stdout.split()]


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


@pytest.mark.slow
def test_what_goes_wrong_in_several_processes_is_said_once(scale):
    """Both refuse; one sentence comes out."""
    folder = scale("odd", micro_batches=1)
    spread(folder, 2)
    done = subprocess.run(COMMAND, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: micro_batches = 1 cannot be shared out among 2")
    assert done.stderr.count("error:") == 1 and "Traceback" not in done.stderr


def test_a_missing_or_odd_configuration_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml, named by accelerate in params\.yaml, is not a file"):
        launch(tmp_path / "nowhere.yaml", ["train", "student"])
    (tmp_path / "odd.yaml").write_text("num_processes: many")
    with pytest.raises(UserError, match="does not say num_processes"):
        launch(tmp_path / "odd.yaml", ["train", "student"])


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_no_bit(scale):
    """SIGKILL at any moment: while libraries load, in a step, in the middle of writing a checkpoint."""
    parameters = {"steps": 600, "checkpoint_every": 3, "validate_every": 300}
    whole, folder = scale("whole", **parameters), scale("killed-0", **parameters)
    here(whole)
    began = time.monotonic()
    process = start(folder)
    wait_for(folder, 3, process)
    start_up = time.monotonic() - began  # depends on the machine and on what else it does
    process.kill()
    process.communicate()
    moments, reached = random.Random(0), [[3]]  # steps of the newest checkpoint at each kill, run by run
    while sum(map(len, reached)) < 20:
        process = start(folder)
        try:
            process.communicate(timeout=moments.uniform(0.3, 2.5) * start_up)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            reached[-1].append(max(checkpoints(folder), default=parameters["steps"] if record(folder).exists() else 0))
        else:
            assert process.returncode == 0
        if record(folder).exists():
            same_weights(folder, whole)
            folder = scale(f"killed-{len(reached)}", **parameters)
            reached.append([])
    assert all(steps == sorted(steps) for steps in reached), reached  # no kill costs a finished checkpoint
    assert sum(len(set(steps)) for steps in reached) >= 8, reached
    run(folder)
    same_weights(folder, whole)


def test_a_full_disk_is_one_sentence_and_the_run_goes_on(scale):
    """Checkpoints on a disk with room for the first of them; then with more room."""
    isolated = ["unshare", "--user", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*isolated, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let a test mount a small disk")
    whole, full = scale("whole", checkpoint_every=2), scale("full", checkpoint_every=2)
    (full / "artifacts" / "checkpoints").mkdir()
    train = " ".join(COMMAND)
    script = f"""
        mount -t tmpfs -o size=800k tmpfs artifacts/checkpoints
        {train}; echo "status $?"
        ls artifacts/checkpoints/student/*
        mount -o remount,size=50m artifacts/checkpoints
        {train}; echo "status $?"
    """
    done = subprocess.run([*isolated, "sh", "-c", script], cwd=full, capture_output=True, text=True)
    assert done.stdout.count("status 2") == 1 and done.stdout.rstrip().endswith("status 0"), done.stdout + done.stderr
    assert "error: the disk is full" in done.stderr and "Traceback" not in done.stderr
    assert "resuming from" in done.stdout
    here(whole)
    same_weights(full, whole)


@pytest.mark.slow
def test_two_machines_train_together(scale):
    """Two launchers that meet over a port, as on two machines, each with one process."""
    alone, together = scale("alone"), scale("together")
    configuration = yaml.safe_load(CONFIGURATION.with_name("machines-2.yaml").read_text())
    port = free_port()
    configuration |= {"num_processes": 2, "use_cpu": True, "main_process_port": port, "gpu_ids": None}
    (together / "machines.yaml").write_text(yaml.safe_dump(configuration))
    launch = ["accelerate", "launch", "--config_file", "machines.yaml", "--main_process_ip", "127.0.0.1"]
    machines = [
        subprocess.Popen([*launch, "--machine_rank", str(rank), *COMMAND[1:]], cwd=together, stderr=subprocess.PIPE)
        for rank in (0, 1)
    ]
    errors = [machine.communicate(timeout=120)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], errors
    trained = json.loads(record(together).read_text())
    assert trained["processes"] == 2
    same_curves(trained, here(alone))
    same_weights(together, alone, tolerance=1e-5)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
