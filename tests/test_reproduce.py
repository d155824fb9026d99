"""`bitdistiller reproduce` does what `dvc repro` does: same lock, same reruns; and leaves no process behind."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bitdistiller import reproduce
from tests.test_pipeline import ROOT, pipeline_params
from tests.test_warm import are_gone, eventually, heed_signals

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="elsewhere this is `dvc repro`")

# Each command notes that it was run, so that a test can tell a run from a restored output.
NOTE = "echo $DVC_STAGE >> ran; "
WAIT = "while [ ! -e {0} ]; do sleep 0.02; done; "
STAGES = {
    "text": {
        "foreach": ["a", "b"],
        "do": {
            "cmd": NOTE + "echo ${item} > ${item}.txt",
            "deps": ["code"],
            "params": ["words.${item}"],
            "outs": ["${item}.txt"],
        },
    },
    "count": {
        "foreach": ["a", "b"],
        "do": {
            "cmd": NOTE + "mkdir -p counts; wc -c < ${item}.txt > counts/${item}; echo '{\"n\": 1}' > ${item}.json",
            "deps": ["${item}.txt"],
            "params": ["common"],
            "outs": ["counts/${item}"],
            "metrics": [{"${item}.json": {"cache": False}}],
        },
    },
    "sum": {"cmd": NOTE + "cat counts/* > sum.txt", "deps": ["counts"], "outs": ["sum.txt"]},
}
ALL = ["count@a", "count@b", "sum", "text@a", "text@b"]
# Values that another way of writing them would change: keys that are numbers, small numbers, words like numbers.
PARAMS = {"threads": 1, "words": {"a": {3: ["x", None], 2: 1e-5}, "b": {"on": "0x1f"}}, "common": 0.1}


def make_folder(folder: Path, stages: dict = STAGES) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS, sort_keys=False))
    (folder / "code").write_text("code")
    dvc(folder, "init", "--no-scm", "--quiet")
    return folder


def dvc(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["dvc", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def start(folder: Path, *arguments: str, cold: bool = True) -> subprocess.Popen:
    program = "from bitdistiller.launch import main; main()"
    command = [sys.executable, "-P", "-c", program, "reproduce", *(["--cold"] if cold else []), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, text=True, preexec_fn=heed_signals, **pipes)


def run(folder: Path, *arguments: str, cold: bool = True) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `bitdistiller reproduce`."""
    process = start(folder, *arguments, cold=cold)
    output, error = finish(process)
    return process.returncode, output, error


def finish(process: subprocess.Popen) -> tuple[str, str]:
    """Stdout and stderr of a process that ends by itself; should it hang, nothing of it is left."""
    try:
        return process.communicate(timeout=900)
    except subprocess.TimeoutExpired:
        process.terminate()
        raise


def ran(folder: Path) -> list[str]:
    """Stages whose command was run since the last call."""
    file = folder / "ran"
    names = sorted(file.read_text().split()) if file.exists() else []
    file.unlink(missing_ok=True)
    return names


def change(folder: Path, **params) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS | params, sort_keys=False))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder in which everything ran once."""
    folder = make_folder(tmp_path_factory.mktemp("finished") / "here")
    status, output, error = run(folder, "--jobs", "2")
    assert status == 0, output + error
    assert ran(folder) == ALL
    return folder


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    """A copy of it for a test to change."""
    return shutil.copytree(finished, tmp_path / "here", symlinks=True)


def test_dvc_agrees_to_the_byte(finished, tmp_path):
    serial = make_folder(tmp_path / "serial")
    dvc(serial, "repro")
    assert (finished / "dvc.lock").read_bytes() == (serial / "dvc.lock").read_bytes()
    assert "up to date" in dvc(finished, "status")
    assert "up to date" in dvc(finished, "repro") and not ran(finished)


def test_nothing_runs_when_nothing_changed(folder):
    before = (folder / "dvc.lock").read_bytes()
    assert run(folder) == (0, "All 5 stages are up to date\n", "")
    assert not ran(folder) and (folder / "dvc.lock").read_bytes() == before


def test_a_change_reruns_what_depends_on_it_and_the_run_cache_undoes_it(folder):
    change(folder, words=PARAMS["words"] | {"a": 2})
    assert run(folder)[0] == 0
    assert ran(folder) == ["text@a"]  # whose output is the same as before, so nothing else
    change(folder)
    assert run(folder)[0] == 0
    assert not ran(folder) and "up to date" in dvc(folder, "status")
    (folder / "b.txt").unlink()
    assert run(folder)[0] == 0
    assert not ran(folder) and (folder / "b.txt").read_text() == "b\n"


def test_targets_bring_what_they_need(tmp_path):
    folder = make_folder(tmp_path / "here")
    assert run(folder, "count@a")[0] == 0
    assert ran(folder) == ["count@a", "text@a"]
    assert run(folder, "text")[0] == 0
    assert ran(folder) == ["text@b"]
    status, _, error = run(folder, "nobody")
    assert status == 2 and error.startswith("error: ") and "nobody" in error and error.count("\n") == 1


def test_a_folder_without_a_pipeline_is_one_sentence(folder):
    (folder / "dvc.yaml").unlink()
    status, _, error = run(folder)
    assert status == 2 and error.startswith("error: there is no dvc.yaml") and error.count("\n") == 1


def meeting(count: int) -> dict:
    """Stages of which each only ends once all are running."""
    together = NOTE + "touch here-${item}; " + "".join(WAIT.format(f"here-{index}") for index in range(count))
    done = {"cmd": together + "touch out-${item}", "outs": ["out-${item}"]}
    return {"meet": {"foreach": list(range(count)), "do": done}}


def test_stages_run_at_the_same_time(tmp_path):
    status, output, error = run(make_folder(tmp_path / "here", meeting(3)), "--jobs", "3")
    assert status == 0, output + error
    assert "3/3" in output


def test_no_more_than_asked_for_run_at_the_same_time(tmp_path):
    alone = {"cmd": "set -e; mkdir busy; sleep 0.1; rmdir busy; touch out-${item}", "outs": ["out-${item}"]}
    stages = {"one": {"foreach": [1, 2, 3], "do": alone}}
    assert run(make_folder(tmp_path / "here", stages), "--jobs", "1")[0] == 0


FAILURE = {
    "bad": {
        "cmd": NOTE + WAIT.format("running") + "echo 'error: no such model' >&2; test -e mended && touch bad.txt",
        "outs": ["bad.txt"],
    },
    "good": {"cmd": NOTE + "touch running; sleep 0.5; touch good.txt", "outs": ["good.txt"]},
    "after": {"cmd": NOTE + "cat bad.txt > after.txt", "deps": ["bad.txt"], "outs": ["after.txt"]},
    "later": {"cmd": NOTE + "touch later.txt", "deps": ["good.txt"], "outs": ["later.txt"]},
}


def test_a_failure_is_one_sentence_and_what_is_done_stays_done(tmp_path):
    folder = make_folder(tmp_path / "here", FAILURE)
    status, output, error = run(folder, "--jobs", "2")
    log = Path("artifacts") / "logs" / "bad.log"
    assert (status, error) == (2, f"error: stage bad failed: no such model ({log})\n")
    assert "no such model" in (folder / log).read_text()
    assert ran(folder) == ["bad", "good"]
    assert "FAILED" in output
    (folder / "mended").touch()
    assert run(folder)[0] == 0
    assert ran(folder) == ["after", "bad", "later"]
    assert "up to date" in dvc(folder, "status")


@pytest.mark.parametrize(
    "command, shown",
    [("seq 100; exit 3", "99\n100\n"), ("kill -9 $$", "exited with"), ("true", "output 'out' does not exist")],
)
def test_a_failure_without_a_sentence_shows_the_end_of_the_log(tmp_path, command, shown):
    folder = make_folder(tmp_path / "here", {"bad": {"cmd": command, "outs": ["out"]}})
    status, _, error = run(folder)
    assert status == 2 and shown in error and error.splitlines()[-1].startswith("error: stage bad failed")
    assert len(error.splitlines()) < 30


WAITER = {
    "first": {"cmd": NOTE + "touch first.txt", "outs": ["first.txt"]},
    "second": {
        "cmd": NOTE + "echo $$ > pid.tmp; mv pid.tmp pid; " + WAIT.format("go") + "touch second.txt",
        "deps": ["first.txt"],
        "outs": ["second.txt"],
    },
}


def start_waiter(tmp_path: Path) -> tuple[Path, subprocess.Popen, int]:
    """A folder, a process in which one stage is done and one waits for the file `go`, and the id of its command."""
    folder = make_folder(tmp_path / "here", WAITER)
    process = start(folder)
    assert eventually((folder / "pid").exists)
    assert ran(folder) == ["first", "second"]
    return folder, process, int((folder / "pid").read_text())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_stops_every_process_and_loses_nothing(tmp_path, number):
    folder, process, command = start_waiter(tmp_path)
    process.send_signal(number)
    output, _ = finish(process)
    assert process.returncode not in (0, 2) and "Stopping second" in output
    assert are_gone([command])
    assert set(yaml.safe_load((folder / "dvc.lock").read_text())["stages"]) == {"first"}
    (folder / "go").touch()
    status, output, error = run(folder)
    assert status == 0, output + error
    assert ran(folder) == ["second"]
    assert "up to date" in dvc(folder, "status")


def test_a_kill_loses_nothing_that_was_done(tmp_path):
    folder, process, _ = start_waiter(tmp_path)
    process.kill()
    process.wait()
    assert not (folder / "dvc.lock").exists()
    (folder / "go").touch()
    assert eventually(lambda: len(list((folder / ".dvc" / "tmp" / "reproduced").glob("*.yaml"))) == 2)
    process.communicate()
    status, output, error = run(folder)
    assert status == 0, output + error
    assert not ran(folder) and "up to date" in dvc(folder, "status")


def test_a_dvc_process_beside_it_is_waited_for(folder):
    """DVC's lock, which a `dvc status` in another terminal holds, delays and does not fail a stage."""
    import zc.lockfile

    lock = zc.lockfile.LockFile(str(folder / ".dvc" / "tmp" / "lock"))
    change(folder, common=2)
    process = start(folder)
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=6)  # DVC itself gives up after 3
    lock.close()
    finish(process)
    assert process.returncode == 0 and ran(folder) == ["count@a", "count@b"]


def test_targets_run_in_the_order_in_which_they_are_named(tmp_path):
    for number, targets in enumerate((["count@b", "count@a"], ["count@a", "count@b"])):
        folder = make_folder(tmp_path / str(number))
        status, _, error = run(folder, "--jobs", "1", *targets)
        assert status == 0, error
        order = (folder / "ran").read_text().split()
        first, second = (target.partition("@")[2] for target in targets)
        assert order == [f"text@{first}", f"count@{first}", f"text@{second}", f"count@{second}"]


@pytest.mark.parametrize("cores, threads, jobs", [(2, 1, 2), (2, 2, 1), (8, 3, 2), (2, 4, 1)])
def test_jobs_fill_the_cores(tmp_path, monkeypatch, cores, threads, jobs):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(f"threads: {threads}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert reproduce.default_jobs() == jobs
    assert reproduce.default_jobs(gpu=True) == 1


def test_estimate_takes_the_mean_of_each_kind():
    ended = {"train": [10.0, 20.0], "evaluate": [3.0]}
    assert reproduce.remaining_seconds(ended, {"train": 4, "evaluate": 2, "study": 1}, 2) == (60 + 6 + 11) / 2
    assert reproduce.remaining_seconds({}, {"train": 4}, 2) == 0


@pytest.mark.slow
def test_a_student_is_the_same_to_the_bit_warm(tmp_path, tiny_model, tiny_text, monkeypatch):
    command = tmp_path / "bin" / "bitdistiller"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable} -P\nfrom bitdistiller.launch import main\nmain()\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    params = pipeline_params(tiny_model, tiny_text)
    students = {}
    for name in ("cold", "warm"):
        folder = make_folder(tmp_path / name, stages)
        (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        shutil.copytree(ROOT / "bitdistiller", folder / "bitdistiller", ignore=shutil.ignore_patterns("weights"))
        status, output, error = run(folder, "train@student2", cold=name == "cold")
        assert status == 0 and "cold" not in output, output + error
        student = folder / "artifacts" / "students" / "student2"
        students[name] = {path.name: path.read_bytes() for path in student.glob("*.safetensors")}
    assert students["cold"] and students["cold"] == students["warm"]
