"""Commands in the warm process: the same outcome as in a process of their own, and nothing is left running."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from bitdistiller import warm
from tests import tiny

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the warm process needs Linux")

# The real server and the real client around a command line that runs its argument as a program. The server imports
# next to nothing, which takes half a second instead of ten.
SERVER = """
import sys, numpy, pathlib, bitdistiller.cli, bitdistiller.warm as warm
warm.preload, warm._unfit, warm._PACKAGE = lambda: None, lambda: None, pathlib.Path(sys.argv[2])
bitdistiller.cli.main = lambda: exec(sys.argv[1], {})
warm.main()
"""
CLIENT = """
import sys, bitdistiller.cli, bitdistiller.launch as launch
bitdistiller.cli.main = lambda: exec(sys.argv[1], {})
launch.main()
"""


def heed_signals() -> None:
    """In a new process: a run of the tests that ignores signals, as one under nohup does, would hand that on."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether a condition becomes true; generous, for loaded machines."""
    deadline = time.monotonic() + 300
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Server:
    def __init__(self, folder: Path):
        self.socket, self.sources = folder / "socket", folder / "sources"
        self.sources.mkdir()
        (self.sources / "code.py").write_text("1")
        command = [sys.executable, "-P", "-c", SERVER, str(self.socket), str(self.sources)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, text=True, preexec_fn=heed_signals, **pipes)
        assert self.process.stdout.readline() == "ready\n"

    def start(self, program: str, client: str = CLIENT, **options) -> subprocess.Popen:
        """A client of this server; keyword arguments of Popen, with ``env`` on top of this environment."""
        options["env"] = {**os.environ, "BITDISTILLER_WARM": str(self.socket), **options.get("env", {})}
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        command = [sys.executable, "-P", "-c", client, program]
        return subprocess.Popen(command, text=True, preexec_fn=heed_signals, **{**pipes, **options})

    def run(self, program: str, given: str = "", **options) -> tuple[int, str, str]:
        """Exit status, stdout and stderr of a program."""
        client = self.start(program, **options)
        output, error = client.communicate(given, timeout=120)
        return client.returncode, output, error

    def is_used(self, **options) -> bool:
        """Whether a client's program runs in a child of this server."""
        _, parent, _ = self.run("import os; print(os.getppid())", **options)
        return int(parent) == self.process.pid

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.end()


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Iterator[Server]:
    """A server for tests that leave it as it was."""
    server = Server(tmp_path_factory.mktemp("warm"))
    yield server
    server.end()


def test_a_command_runs_in_a_child_of_the_server(shared):
    assert shared.is_used()
    assert shared.is_used(), "the first child took the server with it"


@pytest.mark.parametrize(
    "program",
    [
        "print('out'); import sys; print('error', file=sys.stderr)",
        "print(input() * 2)",
        "import sys; print(sys.argv[1:], sys.stdout.line_buffering, sys.stderr.line_buffering)",
        "import os; print(os.getcwd(), os.umask(0), os.environ['OWN'], 'OMP_NUM_THREADS' in os.environ)",
        "import sys; sys.exit(3)",
        "import sys; sys.exit('in words')",
        "import atexit, threading; atexit.register(print, 'last'); threading.Timer(0.1, print, ['late']).start()",
        "raise SystemExit",
    ],
)
def test_outcome_is_that_of_a_process_of_its_own(shared, tmp_path, program):
    options = {"given": "words\n", "cwd": tmp_path, "umask": 0o027, "env": {"OWN": "value"}}
    cold = shared.run(program, **{**options, "env": {"OWN": "value", "BITDISTILLER_WARM": ""}})
    assert shared.run(program, **options) == cold


def test_a_bug_keeps_its_traceback(shared):
    status, _, error = shared.run("1 / 0")
    assert status == 1 and error.startswith("Traceback") and error.endswith("ZeroDivisionError: division by zero\n")


def test_generators_are_seeded_afresh(shared):
    program = "import random, numpy; print(random.random(), numpy.random.random())"
    first, second = (shared.run(program)[1].split() for _ in range(2))
    assert first[0] != second[0] and first[1] != second[1]


def test_the_client_s_terminal_is_the_command_s(shared):
    """Colours and progress bars ask whether stdout is a terminal: it is the client's that counts."""
    terminal, inside = os.openpty()
    client = shared.start("import sys; print(sys.stdout.isatty(), sys.stdout.line_buffering)", stdout=inside)
    client.communicate("", timeout=120)
    os.close(inside)
    assert os.read(terminal, 100).decode().split() == ["True", "True"]
    os.close(terminal)


def test_commands_run_at_the_same_time(shared, tmp_path):
    meet = (
        "import os, pathlib, time\n"
        "pathlib.Path(f'here-{os.getpid()}').touch()\n"
        "while len(list(pathlib.Path().glob('here-*'))) < 2: time.sleep(0.01)\n"
    )
    clients = [shared.start(meet, cwd=tmp_path) for _ in range(2)]
    assert [(client.communicate("", timeout=120), client.returncode)[1] for client in clients] == [0, 0]


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM", "MPLBACKEND"])
def test_another_value_of_a_variable_read_at_import_runs_cold(shared, name):
    assert not shared.is_used(env={name: "7"})


def test_another_copy_of_the_package_runs_cold(shared):
    assert not shared.is_used(client=f"import bitdistiller.launch\nbitdistiller.launch.__file__ = '/else.py'\n{CLIENT}")


def test_other_cores_run_cold(shared):
    fewer = CLIENT.replace("import sys,", "import os; os.sched_getaffinity = lambda _: {97}\nimport sys,")
    assert not shared.is_used(client=fewer)


@pytest.mark.parametrize("edit", [lambda code: code.write_text("22"), Path.unlink, lambda code: os.utime(code, (1, 1))])
def test_an_edit_is_never_ignored(server, edit):
    assert server.is_used()
    edit(server.sources / "code.py")
    assert not server.is_used()
    assert "source files" in server.process.stdout.readline()


def test_no_server_runs_cold(shared, tmp_path):
    assert not shared.is_used(env={"BITDISTILLER_WARM": str(tmp_path / "nobody")})


def test_a_client_without_standard_streams_runs_cold(shared):
    assert shared.run("import os, sys; sys.exit(os.getppid())", client=f"import os; os.close(0)\n{CLIENT}")[0] != 1


def test_nonsense_does_not_end_the_server(server):
    import socket

    for message in (b"", b"x", b"\0\0\0\5hello"):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(server.socket))
            client.sendall(message)
    assert server.is_used()


def sleeper(server: Server, folder: Path) -> tuple[subprocess.Popen, list[int]]:
    """A client whose command sleeps beside a process that it started, and the ids of those two."""
    program = (
        "import os, subprocess, sys, time\n"
        "other = subprocess.Popen(['sleep', '600'])\n"
        "open('pids.tmp', 'w').write(f'{os.getpid()} {other.pid}')\n"
        "os.rename('pids.tmp', 'pids')\n"
        "time.sleep(600)\n"
    )
    client = server.start(program, cwd=folder)
    assert eventually((folder / "pids").exists)
    pids = [int(word) for word in (folder / "pids").read_text().split()]
    assert all(map(is_running, pids))
    return client, pids


def are_gone(pids: list[int]) -> bool:
    return eventually(lambda: not any(map(is_running, pids)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_client_ends_the_command_and_what_it_started(shared, tmp_path, number):
    client, pids = sleeper(shared, tmp_path)
    client.send_signal(number)
    _, error = client.communicate(timeout=120)
    assert client.returncode == 128 + number
    assert ("KeyboardInterrupt" in error) == (number == signal.SIGINT)
    assert are_gone(pids)


def test_a_dead_client_ends_the_command(shared, tmp_path):
    client, pids = sleeper(shared, tmp_path)
    client.kill()
    client.communicate()
    assert are_gone(pids)
    assert shared.is_used()


def test_a_killed_command_is_reported(shared):
    assert shared.run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")[0] == 137


def test_the_end_of_the_starter_ends_server_and_commands(server, tmp_path):
    client, pids = sleeper(server, tmp_path)
    server.end()
    _, error = client.communicate(timeout=120)
    assert (client.returncode, error.count("\n")) == (1, 1) and error.startswith("error: the warm process ended")
    assert are_gone(pids)


def test_a_killed_server_takes_its_commands_along(server, tmp_path):
    client, (command, other) = sleeper(server, tmp_path)
    server.process.kill()
    assert client.wait(timeout=120) == 1
    os.kill(other, signal.SIGKILL)  # the one thing that outlives it
    client.communicate()
    assert are_gone([command])


def test_a_server_that_is_not_waited_for_leaves_nothing(tmp_path):
    with warm.WarmServer(tmp_path / "warm.log") as server:
        folder, pid = Path(server.address).parent, server._process.pid
        assert folder.stat().st_mode & 0o777 == 0o700
        assert is_running(pid)
    assert not is_running(pid) and not folder.exists()


def test_a_gpu_does_not_survive_a_fork(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "GPU" in warm._unfit()


@pytest.mark.slow
def test_preloading_starts_no_thread():
    """An OpenMP pool would hang a forked child; OpenBLAS, whose threads survive a fork, is held to none here."""
    program = (
        "import os, sys, threading, bitdistiller.warm as warm\n"
        "warm.preload()\n"
        "tasks = [open(f'/proc/self/task/{task}/comm').read().strip() for task in os.listdir('/proc/self/task')]\n"
        "print(len([task for task in tasks if not task.startswith('jemalloc')]), threading.active_count())\n"
        "print('bitdistiller.distill.trainer' in sys.modules, 'lm_eval.evaluator' in sys.modules)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "1", "True", "True"], done.stderr


@pytest.fixture(scope="module")
def real_server(tmp_path_factory) -> Iterator[warm.WarmServer]:
    with warm.WarmServer(tmp_path_factory.mktemp("warm") / "warm.log") as server:
        assert server.wait() is None
        yield server
    assert server.refusals == []


def bitdistiller(folder: Path, *arguments: str, server: warm.WarmServer | None = None) -> subprocess.CompletedProcess:
    environment = {**os.environ, "BITDISTILLER_WARM": server.address if server else ""}
    command = [sys.executable, "-c", "from bitdistiller.launch import main; main()", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["formats", "--model", "none", "--bits", "2"], ["evaluate", "nobody"], ["-h"]])
def test_real_commands_print_the_same(real_server, tmp_path, tiny_model, tiny_text, arguments):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tiny.make_params(tiny_model, tiny_text)))
    cold, warmed = bitdistiller(tmp_path, *arguments), bitdistiller(tmp_path, *arguments, server=real_server)
    assert (warmed.returncode, warmed.stdout) == (cold.returncode, cold.stdout)
    if arguments[0] == "evaluate":
        assert warmed.stderr == cold.stderr
        assert cold.stderr.startswith("error: ") and cold.stderr.count("\n") == 1 and cold.returncode == 2


@pytest.mark.slow
def test_an_evaluation_is_the_same_to_the_bit(real_server, tmp_path, tiny_model, tiny_text):
    results = {}
    for name, server in (("cold", None), ("warm", real_server)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "params.yaml").write_text(yaml.safe_dump(tiny.make_params(tiny_model, tiny_text)))
        done = bitdistiller(folder, "evaluate", "full", server=server)
        assert done.returncode == 0, done.stderr
        run = folder / "results" / "runs" / "full"
        results[name] = (run / "items.csv").read_bytes(), json.loads((run / "metrics.json").read_text())
    assert results["cold"] == results["warm"]
