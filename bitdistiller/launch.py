"""The console entry point: a command runs in a warm process where there is one, and otherwise in this one.

A command of the pipeline pays 5 to 8 seconds for importing torch, transformers and lm-eval before it begins, which at
micro scale is as long as its work. `bitdistiller reproduce` therefore starts one process that has imported everything
(:mod:`bitdistiller.warm`) and names its socket in ``BITDISTILLER_WARM``. What starts here imports the standard library
alone, hands its arguments, folder, environment and standard streams over, waits, and exits with the command's status.

It is the same command, only faster. So whatever could make a difference sends it back to the ordinary way, silently:
no server, another interpreter, other source files, other cores, or another value of a variable that libraries read when
they are imported. Signals go through: Ctrl-C and SIGTERM reach the command, and if this process dies the command does.
"""

import json
import os
import signal
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path

VARIABLE = "BITDISTILLER_WARM"
LENGTH = struct.Struct("!I")  # of the request that follows the file descriptors
ACCEPTED = "accepted"
_ANSWER_SECONDS = 20  # a server that is slower than an import is no gain

# Beginnings of names that Python, the C library or a library reads once, at start or at import.
_READ_AT_IMPORT = (
    "ACCELERATE_", "ARROW_", "ATEN_", "CUDA_", "DATASETS_", "GOMP_", "HF_", "HOME", "HUGGINGFACE_", "KMP_", "LANG",
    "LC_", "LD_", "LM_EVAL", "MALLOC", "MKL_", "MPL", "NUMEXPR_", "OMP_", "OPENBLAS_", "PYTHON", "PYTORCH_", "TMPDIR",
    "TOKENIZERS_", "TORCH", "TRANSFORMERS_", "TZ", "XDG_",
)  # fmt: skip


def main() -> None:
    """Entry point of ``bitdistiller``: exits with the status that the command has either way."""
    status = _run_warm()
    if status is not None:
        sys.exit(status)
    from bitdistiller.cli import main as run_here

    run_here()


def conditions() -> dict:
    """What has to be equal on both sides for a command to compute the same in the server as here."""
    return {
        "interpreter": [sys.executable, sys.version, *sys.warnoptions],
        "package": str(Path(__file__).resolve().parent),
        "cores": sorted(os.sched_getaffinity(0)),
        "variables": {name: value for name, value in os.environ.items() if name.startswith(_READ_AT_IMPORT)},
    }


def _run_warm() -> int | None:
    """Exit status of the command in the warm process; None if it has to run here."""
    address = os.environ.get(VARIABLE)
    if not address or sys.platform != "linux":
        return None
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.settimeout(_ANSWER_SECONDS)
            server.connect(address)
            _send(server)
            replies = server.makefile("r")
            if replies.readline().strip() != ACCEPTED:
                return None
        except (OSError, ValueError):  # nobody listens, or a standard stream is closed
            return None
        server.settimeout(None)
        _forward_signals(server)
        return _status(replies)


def _send(server: socket.socket) -> None:
    # umask can only be read by setting it
    mask = os.umask(0)
    os.umask(mask)
    request = {
        "arguments": sys.argv,
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "import_path": sys.path,
        "umask": mask,
        "conditions": conditions(),
    }
    payload = json.dumps(request).encode()
    socket.send_fds(server, [LENGTH.pack(len(payload))], [0, 1, 2])
    server.sendall(payload)


def _forward_signals(server: socket.socket) -> None:
    def forward(number, _frame):
        with suppress(OSError):
            server.send(bytes([number]))

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, forward)


def _status(replies) -> int:
    """Exit status that the server reports, as a shell counts it: 128 + n for a death by signal n."""
    try:
        return int(replies.readline())
    except (OSError, ValueError):
        print("error: the warm process ended before the command did; run it again", file=sys.stderr)
        return 1
