"""The cluster as `bitdistiller reproduce` sees it: how many stages it holds, and a way to run one there."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from bitdistiller.errors import UserError


class Resources(NamedTuple):
    """What a stage gets of a machine.

    ``cpus``: cores; None for ``threads`` of params.yaml.
    ``gpus``: None for one if the cluster has any.
    ``retries``: how often a stage is begun again after its machine was lost.
    """

    cpus: int | None = None
    gpus: int | None = None
    retries: int = 5


class Cluster:
    """A Ray cluster; ``address`` is ``auto``, ``local`` or HOST:PORT, ``logs`` a folder relative to the current one."""

    def __init__(self, address: str, resources: Resources, logs: Path):
        host, _, port = address.rpartition(":")
        if address not in ("auto", "local") and not (host and port.isdecimal()):
            raise UserError(f"--ray takes auto, local or HOST:PORT, not '{address}'")
        if importlib.util.find_spec("ray") is None:
            raise UserError("--ray needs Ray, on every machine: pip install 'bitdistiller[cluster]'")
        self._address, self._resources, self._log = address, resources, logs / "ray.log"

    @contextmanager
    def connected(self, root: Path) -> Iterator[None]:
        """Until the end of ``with``, stages of the project with DVC's root at ``root`` can run there.

        Raises:
            UserError: there is no such cluster, with Ray's own reason.
        """
        # A file that only machines which share the folder can see.
        self._token = root / ".dvc" / "tmp" / f"cluster-{uuid.uuid4()}"
        self._token.touch()
        with tempfile.TemporaryDirectory(prefix="bitdistiller-") as folder, self._log.open("w") as log:
            self._socket = str(Path(folder) / "socket")
            options = {"address": self._address, "socket": self._socket, **self._resources._asdict()}
            program = "from bitdistiller.cluster.dispatch import main; main()"
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", program, json.dumps(options)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
            )  # fmt: skip
            line = None
            try:
                line = process.stdout.readline()
                self._found = json.loads(line) if line else {"error": f"see {self._log}"}
                if self._found["error"]:
                    raise UserError(f"there is no Ray cluster at {self._address}: {self._found['error']}")
                yield
            finally:
                if line is None:  # interrupted while it looked for the cluster, and would notice nothing else
                    process.kill()
                process.stdin.close()  # which calls off whatever still runs
                process.wait()
                process.stdout.close()
                self._token.unlink(missing_ok=True)

    def __str__(self) -> str:
        """What was found at the beginning."""
        found = self._found
        return f"Ray: {found['machines']} machines; a stage gets {found['cpus']} CPUs and {found['gpus']} GPUs"

    def slots(self) -> int:
        """Stages that the machines which are there now hold at the same time.

        Raises:
            UserError: the connection is lost.
        """
        return int(self._ask("slots"))

    def run(self, request: dict, log: Path) -> dict:
        """Run a stage's command on a machine of the cluster and wait for its end; called in a child.

        Raises:
            UserError: the connection is lost.
        """
        asked = {**request, "log": str(log), "token": os.path.relpath(self._token, request["root"])}
        return json.loads(self._ask(json.dumps(asked)))

    def _ask(self, line: str) -> str:
        with socket.socket(socket.AF_UNIX) as dispatcher, suppress(OSError):
            dispatcher.connect(self._socket)
            dispatcher.sendall(f"{line}\n".encode())
            if reply := dispatcher.makefile("r").readline():
                return reply
        raise UserError(f"the connection to the Ray cluster is lost ({self._log}); run it again to go on")
