"""What a machine of the cluster does for one stage: find the project, run the command, say what became of it.

Two situations, told apart by a file that the asking machine has just made. If it is here too, the machines share the
project's folder: the command runs in it, and there is nothing to move. If not, or if ``BITDISTILLER_CLONE`` names one,
this machine works in a clone of its own, by default at the same path: DVC is called in it, takes the inputs from the
remote and puts the outputs there (:func:`bitdistiller.reproduce_stages.visit_in_clone`).

An attempt may follow one that died with its machine. It begins as the first did, without outputs, and waits until no
process of the other holds the stage's log: on a shared folder two would write the same files.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from bitdistiller.cluster import guard

CLONE = "BITDISTILLER_CLONE"
_SHARED_FOLDER_SECONDS = 60  # after which any client of a network file system sees what another one wrote
_OTHER_ATTEMPT_SECONDS = 180  # longer than a file server keeps the locks of a dead machine (NFS 4: 90 s)
_OUTPUT_BYTES = 1 << 16
_DIED_BY_SIGTERM = 128 + 15


class PreemptedError(Exception):
    """The command was ended by somebody else: the machine is being taken away, so another one should try."""


def run_stage(request: str) -> str:
    """Run a stage's command here; request and answer are JSON.

    The answer has ``status`` (as a shell counts it), ``error`` (one sentence, if it could not even be tried),
    ``output`` (its last lines, where the log is not the asking machine's), ``made`` (absolute paths of the outputs that
    a shared folder now has) and ``record`` (what a clone put into the remote).

    Raises:
        PreemptedError: run it again, elsewhere.
    """
    asked = json.loads(request)
    root, clone, host = Path(asked["root"]), os.environ.get(CLONE), os.uname().nodename
    if clone is None and (root / asked["token"]).exists():
        return json.dumps(_run_in_shared_folder(asked, root))
    clone = Path(clone or root)
    if asked["remote"] is None:
        reason = f"{host} does not share the folder {root}; mount it there, or name a DVC remote with --remote"
        return json.dumps(answer(error=reason))
    if not (clone / ".dvc").is_dir():
        reason = f"{host} has no clone of the project at {clone}; make one, or set {CLONE} where Ray is started"
        return json.dumps(answer(error=reason))
    return json.dumps(_run_in_clone(asked, clone))


def wait_for(paths: Iterable[Path]) -> None:
    """Wait until paths exist; a network file system may remember for a while that they did not."""
    deadline = time.monotonic() + _SHARED_FOLDER_SECONDS
    for path in paths:
        while not path.exists() and time.monotonic() < deadline:
            with suppress(OSError):
                os.listdir(path.parent)  # makes a client of NFS ask its server
            time.sleep(0.1)


def answer(status: int = 0, **more) -> dict:
    """An answer with some of its fields."""
    return {"status": status, "error": None, "output": "", "made": [], "record": None, **more}


def _run_in_shared_folder(asked: dict, root: Path) -> dict:
    wait_for(root / path for path in asked["reads"])
    with (root / asked["here"] / asked["log"]).open("ab") as log:
        if not _hold(log):
            return answer(error=f"another machine still runs stage {asked['name']}; wait until it has ended")
        _write(log, f"{_where()}, in the shared folder")
        for path in asked["writes"]:
            _remove(root / path)
        for command in asked["commands"]:
            environment = {"DVC_STAGE": asked["name"], "DVC_ROOT": str(root)}
            status = _run([*_shell(), command], root / asked["folder"], log, environment)
            if status:
                return answer(status)
    return answer(made=[str(root / path) for path in asked["writes"] if (root / path).exists()])


def _run_in_clone(asked: dict, clone: Path) -> dict:
    folder = clone / asked["here"]
    log_file = folder / asked["log"]
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as drafts, log_file.open("wb+") as log:
        request, record = Path(drafts) / "request.json", Path(drafts) / "record.json"
        request.write_text(json.dumps(asked))
        _write(log, f"{_where()}, in its clone {folder}")
        program = "from bitdistiller.reproduce_stages import visit_in_clone; visit_in_clone()"
        status = _run([sys.executable, "-P", "-c", program, str(request), str(record)], folder, log, {})
        log.seek(max(0, log.seek(0, os.SEEK_END) - _OUTPUT_BYTES))
        output = log.read().decode(errors="replace")
        return answer(status, output=output, record=None if status else json.loads(record.read_text()))


def _run(command: Sequence[str], folder: Path, log: IO[bytes], variables: dict[str, str]) -> int:
    """Status of a command that ends with this process, however that ends."""
    tools = Path(sys.executable).parent  # a stage's command is looked for where this interpreter is
    environment = {**os.environ, **variables, "PATH": os.pathsep.join([str(tools), os.environ.get("PATH", "")])}
    guarded = [sys.executable, "-P", guard.__file__, *command]
    process = subprocess.Popen(
        guarded, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True
    )
    status = process.wait()
    process.stdin.close()
    if status == _DIED_BY_SIGTERM:
        raise PreemptedError(f"{_where()}: the command was ended by SIGTERM")
    if status < 0:  # the guard itself, which Ray kills with its worker; of its command it says 128 + n
        raise PreemptedError(f"{_where()}: what watches over the command was killed by signal {-status}")
    return status


def _shell() -> list[str]:
    """The shell that DVC uses for commands."""
    shell = os.environ.get("SHELL") or "/bin/sh"
    return [shell, *{"zsh": ["--no-rcs"], "bash": ["--noprofile", "--norc"]}.get(Path(shell).name, []), "-c"]


def _where() -> str:
    return f"On {os.uname().nodename} (node {os.environ.get('BITDISTILLER_NODE', '?')}, process {os.getpid()})"


def _write(log: IO[bytes], line: str) -> None:
    # An attempt that was cut off may have left a progress bar, which has no end of line.
    log.write((b"\n" if log.tell() else b"") + f"{line}\n".encode())
    log.flush()


def _hold(log: IO[bytes]) -> bool:
    """Lock a stage's log; the lock goes over to the command, and holds as long as anything of it lives."""
    deadline = time.monotonic() + _OTHER_ATTEMPT_SECONDS
    while True:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        except OSError:  # a file system without locks
            return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
