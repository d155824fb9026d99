"""One run on several processes: how they are started, what they agree on, and how the failure of one ends them all.

`accelerate launch` starts the processes that a configuration file asks for, one a device, under torch's agent. Nothing
is restarted in place: when a process fails or is killed, the agent ends the others, and the command that was given
goes on from the last checkpoint. A process that fails leaves what it has to say in a file of the agent's, so that it
is said once, whichever process it was and however many of them failed with it.
"""

import json
import logging
import os
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import yaml
from accelerate import PartialState

from bitdistiller.errors import Stopped, UserError, sentence_of

_GO_ON = "the same command goes on from the last checkpoint"


def launched() -> bool:
    """Whether a launcher started this process, so that it is one of a run's and starts no others."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ or "LOCAL_RANK" in os.environ


def asked_for(config: Path) -> int:
    """How many processes an accelerate configuration starts.

    Raises:
        UserError: there is no such file, or it does not say.
    """
    if not config.is_file():
        raise UserError(f"{config}, named by accelerate in params.yaml, is not a file; profiles/accelerate has some")
    try:
        return int(yaml.safe_load(config.read_text())["num_processes"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError):
        raise UserError(f"{config} does not say num_processes; see the files in profiles/accelerate") from None


def launch(config: Path, arguments: Sequence[str]) -> None:
    """Run ``bitdistiller ARGUMENTS`` in the processes that an accelerate configuration describes; returns at their end.

    Raises:
        UserError: there is no such file, or a process failed: with its own sentence, where it had one.
        Stopped: SIGTERM or Ctrl-C ended it.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    asked_for(config)
    for noisy in ("torch.distributed.elastic", "torch.distributed.run", "accelerate"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    options = ["--config_file", str(config), "--module", "bitdistiller", *arguments]
    try:
        launch_command(launch_command_parser().parse_args(options))
    except ChildFailedError as error:
        raise UserError(_first_failure(error)) from None
    except SignalException as error:
        raise Stopped(f"the run was stopped by {error.sigval.name}; {_GO_ON}") from None


def _first_failure(error) -> str:
    """The sentence of the process that failed first; one that was only cut off by that has nothing to say."""
    reports = [(rank, failure, _report(failure)) for rank, failure in error.failures.items()]
    spoken = [report for *_, report in reports if report and report.get("sentence")]
    if spoken:
        return min(spoken, key=lambda report: report["time"])["sentence"]
    rank, failure, report = min(reports, key=lambda entry: entry[2]["time"] if entry[2] else -1.0)
    if report:
        print(report["traceback"])
        return f"process {rank} of the run failed as above; {_GO_ON}"
    return f"process {rank} of the run ended with {_manner(failure)}; {_GO_ON}"


def _report(failure) -> dict | None:
    try:
        return json.loads(Path(failure.error_file).read_text())["bitdistiller"]
    except (OSError, ValueError, KeyError):
        return None


def _manner(failure) -> str:
    return f"signal {failure.signal_name()}" if failure.exitcode < 0 else f"exit status {failure.exitcode}"


@contextmanager
def joined() -> Iterator[None]:
    """Within, a launched process is one of its run's; what goes wrong is left to the agent, which says it once.

    A process that nobody launched is alone, and nothing changes.
    """
    if not launched():
        yield
        return
    file = os.environ.get("TORCHELASTIC_ERROR_FILE", os.devnull)
    try:
        PartialState(cpu=not torch.cuda.is_available())
        yield
        PartialState().destroy_process_group()
    except Exception as error:
        report = {
            "time": time.time(),
            "sentence": sentence_of(error),
            "traceback": traceback.format_exc(),
        }
        message = {"message": str(error), "extraInfo": {"timestamp": str(int(report["time"]))}}
        Path(file).write_text(json.dumps({"message": message, "bitdistiller": report}))
        raise SystemExit(2) from None


def count() -> int:
    """Processes of this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that writes files and prints."""
    return not dist.is_initialized() or dist.get_rank() == 0


def on_any(flag: bool) -> bool:
    """True in every process if it is in one."""
    if count() == 1:
        return flag
    flags = torch.tensor([int(flag)], device=_device())
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return bool(flags.item())


def from_main(number: int) -> int:
    """The main process's number, in every process."""
    if count() == 1:
        return number
    numbers = torch.tensor([number], device=_device())
    dist.broadcast(numbers, src=0)
    return int(numbers.item())


def _device() -> torch.device:
    """Where this process's collective operations take their tensors from."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
