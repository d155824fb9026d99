"""A plan as values, as lines for a terminal and as JSON.

Times are those of devices: a run on eight devices for an hour counts eight hours. ``cached`` is what DVC would not run
again; nothing is run to find out. Assumptions that a number rests on are printed below the numbers.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from dvc.exceptions import DvcException

from bitdistiller.config import Params, load_params
from bitdistiller.errors import UserError
from bitdistiller.plan.calibrate import calibration
from bitdistiller.plan.machine import A100, CONTEXT, H100, Accelerator, Host
from bitdistiller.plan.memory import PARTS, Memory
from bitdistiller.plan.stages import KINDS, Setup, Stage, stages

GPUS = (A100, H100)
_HERE = Host.name


@dataclass(frozen=True)
class Row:
    """One stage with its price.

    Attributes:
        stage: as it runs on GPUs.
        seconds: by machine, from its beginning to its end.
        devices: that it occupies meanwhile.
        here: its memory on this machine.
        cached: whether it is up to date; None if nobody knows.
    """

    stage: Stage
    seconds: dict[str, float]
    devices: int
    here: Memory | None
    cached: bool | None

    def occupied(self, machine: str) -> float:
        """Seconds of all devices together; this machine is one."""
        return self.seconds[machine] * (1 if machine == _HERE else self.devices)


@dataclass(frozen=True)
class Plan:
    """What a scale costs.

    Attributes:
        jobs: stages that this machine runs at the same time; ``start``: seconds of imports in the time of each.
        notes: what is assumed or unknown.
    """

    scale: str
    folder: str
    setup: Setup
    rows: tuple[Row, ...]
    machines: tuple[str, ...]
    jobs: int
    start: float
    notes: tuple[str, ...]


def profile_params(name: str) -> Path:
    """Parameter file of the scale in profiles/NAME.

    Raises:
        UserError: there is none.
    """
    path = Path("profiles") / name / "params.yaml"
    if not path.is_file():
        known = sorted(found.parent.name for found in Path("profiles").glob("*/params.yaml"))
        raise UserError(
            f"there is no profile {name!r} in {path.parent.parent.absolute()}; it has {', '.join(known) or 'none'}"
        )
    return path


def make_plan(path: Path, setup: Setup, efficiency: float, artifacts: Path) -> Plan:
    """The plan of the scale that ``path`` describes.

    Args:
        efficiency: share of a GPU's peak that matrix products reach.
        artifacts: where the measurement of this machine is kept.

    Raises:
        UserError: parameters that do not fit, or a model of unknown shape.
    """
    params, artifacts = load_params(path), artifacts.absolute()
    with chdir(path.absolute().parent):
        on_gpus = stages(params, Path("results"), setup)
        here = stages(params, Path("results"), Setup(host=True))
        cached, why = _cached()
    host, notes = _host(params, artifacts)
    gpus = [replace(gpu, efficiency=efficiency) for gpu in GPUS]
    rows = [
        _row(gpu_stage, host_stage, gpus, host, None if cached is None else gpu_stage.name in cached)
        for gpu_stage, host_stage in zip(on_gpus, here, strict=True)
    ]
    rows = [replace(row, devices=setup.devices if row.stage.spread else 1) for row in rows]
    notes = [*why, *notes, *_assumptions(params, setup, efficiency)]
    names = [*(gpu.name for gpu in gpus), *([host.name] if host else [])]
    jobs, start = max(1, cores() // params.threads), host.each["stages"] if host else 0.0
    return Plan(params.scale, str(path.parent), setup, tuple(rows), tuple(names), jobs, start, tuple(notes))


def _host(params: Params, artifacts: Path) -> tuple[Host | None, list[str]]:
    if torch.cuda.is_available():
        return None, ["this machine has a GPU, so look at the nearest column; its processor is not measured"]
    threads = min(params.threads, cores())
    found = calibration(threads, artifacts)
    used = f"{threads} thread{'s' if threads > 1 else ''}"
    return found.host(), [f"this machine: {found.machine}, {used}, measured ({artifacts.name}/machine-*.json)"]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _row(stage: Stage, here: Stage, gpus: Sequence[Accelerator], host: Host | None, cached: bool | None) -> Row:
    seconds = {gpu.name: max(gpu.seconds(stage.work), gpu.exchange(stage.exchanged)) for gpu in gpus}
    if host is None:
        return Row(stage, seconds, 1, None, cached)
    return Row(stage, {**seconds, host.name: host.seconds(here.work)}, 1, here.memory.on_host(host.runtime), cached)


def _cached() -> tuple[set[str] | None, list[str]]:
    """Names of stages that DVC would not run; None and a sentence if it cannot tell."""
    from bitdistiller.reproduce import Pipeline

    try:
        pipeline = Pipeline()
    except (DvcException, UserError) as error:
        return None, [f"what is cached is not known: {' '.join(str(error).split())}"]
    return set(pipeline.stages) - set(pipeline.outdated), []


def _assumptions(params: Params, setup: Setup, efficiency: float) -> list[str]:
    found = [
        f"GPUs: matrix products at {efficiency:.0%} of the bf16 peak (an assumption: Llama 3 reports 38 to 43 %, arXiv "
        "2407.21783), memory at 80 % of its bandwidth; change the first with --efficiency",
        "text, answers and texts to score are taken at their full length; padding counts; GPU memory adds "
        f"{CONTEXT / 1e9:.1f} GB of CUDA's own",
        "disk counts what stays twice, since DVC copies it into its cache where the file system cannot share blocks",
    ]
    if params.peers:
        found.append(
            "other people's quantizers (peer) run on the processor; their times are rough, whatever the column"
        )
    if setup.devices > 1:
        found.append(
            f"training runs on {_spread(setup)}, communication overlapped with computing; times are of devices "
            "together, all other stages use one"
        )
    return found


# --- for a terminal ---------------------------------------------------------------------------------------------------


def lines(plan: Plan) -> Iterator[str]:
    """What the command prints."""
    rows = plan.rows
    known = [row for row in rows if row.cached is not None]
    done = f", {sum(bool(row.cached) for row in known)} up to date" if known else ""
    trained = [row for row in rows if row.stage.kind == "train"]
    yield f"{plan.scale} scale ({plan.folder}): {len(trained)} runs, {len(rows)} stages{done}"
    yield ""
    yield from table(["stage", "count", "done", "tokens", "FLOPs", "memory", "disk", *plan.machines], _kinds(plan))
    yield ""
    if trained:
        yield from table(
            ["run", "model", "tokens", "FLOPs", "memory", *plan.machines, "done"], map(_run(plan), trained)
        )
        yield ""
        yield f"Memory of one device by part, {_spread(plan.setup)}:"
        yield from table(["model", *PARTS[:-1], "CUDA", "total"], _parts(trained))
        yield ""
    yield from _totals(plan)
    yield from (f"- {note}" for note in plan.notes)


def table(header: list[str], body) -> Iterator[str]:
    """Aligned columns: the first to the left, all others to the right."""
    cells = [header, *([str(cell) for cell in row] for row in body)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        yield "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()


def _kinds(plan: Plan) -> Iterator[list[str]]:
    for kind in KINDS:
        rows = [row for row in plan.rows if row.stage.kind == kind]
        if rows:
            yield [kind, *_sums(plan, rows)]
    yield ["all", *_sums(plan, plan.rows)]
    left = [row for row in plan.rows if not row.cached]
    if len(left) < len(plan.rows):
        yield ["not done", *_sums(plan, left)]


def _sums(plan: Plan, rows: Sequence[Row]) -> list[str]:
    done = "?" if any(row.cached is None for row in rows) else str(sum(bool(row.cached) for row in rows))
    return [
        str(len(rows)),
        done,
        quantity(sum(row.stage.tokens for row in rows)),
        quantity(sum(flops(row) for row in rows)),
        size(max((device_bytes(row) for row in rows), default=0)),
        size(sum(2 * row.stage.disk for row in rows) + max((row.stage.scratch for row in rows), default=0)),
        *(duration(sum(row.occupied(machine) for row in rows)) for machine in plan.machines),
    ]


def _run(plan: Plan) -> Callable[[Row], list[str]]:
    def cells(row: Row) -> list[str]:
        prices = [duration(row.occupied(machine)) for machine in plan.machines]
        done = "?" if row.cached is None else "yes" if row.cached else "no"
        stage = row.stage
        return [
            stage.key,
            short(stage.model),
            quantity(stage.tokens),
            quantity(flops(row)),
            size(device_bytes(row)),
            *prices,
            done,
        ]

    return cells


def _parts(rows: Sequence[Row]) -> Iterator[list[str]]:
    distinct = {(row.stage.model, tuple(row.stage.memory.parts.items())): row for row in rows}
    for row in distinct.values():
        held = row.stage.memory.parts
        yield [
            short(row.stage.model),
            *(size(held.get(part, 0)) if held.get(part) else "-" for part in PARTS[:-1]),
            size(CONTEXT),
            size(device_bytes(row)),
        ]


_SPREAD = {"full": "fully sharded", "none": "each with a whole copy (DDP)", None: "sharded as each run says"}


def _spread(setup: Setup) -> str:
    if setup.devices == 1:
        return "on one device"
    return f"{setup.devices} devices, {_SPREAD[setup.sharding]}"


def _totals(plan: Plan) -> Iterator[str]:
    left = [row for row in plan.rows if not row.cached]
    for machine in plan.machines:
        if machine == _HERE:
            warm = sum(max(row.seconds[machine] - plan.start, 0) for row in left) / plan.jobs + (
                plan.start if left else 0
            )
            how = f"with `bitdistiller reproduce`, {plan.jobs} stages at a time, which pay their imports once"
            yield f"{machine}: {duration(warm)} for what is not done, {how}"
            continue
        devices = plan.setup.devices
        elapsed = sum(row.seconds[machine] / (1 if row.stage.spread else devices) for row in left)
        yield f"{machine}: {duration(elapsed)} for what is not done, on {_count(devices)}"
    for kind in KINDS:
        largest = max((row for row in plan.rows if row.stage.kind == kind), key=device_bytes, default=None)
        if largest and device_bytes(largest) > A100.memory:
            yield _too_large(largest)
    host = max((row.stage.memory.host for row in plan.rows), default=0)
    if host > 1e9:
        yield f"host memory beside a GPU: {size(host)} at most, for a teacher's states, and a model while it is loaded"


def _too_large(row: Row) -> str:
    advice = "it runs on one device, so it needs a larger one"
    if row.stage.spread:
        advice = "plan with --devices and --sharding full, more micro_batches, or activation_checkpointing"
    needed, there = size(device_bytes(row)), size(A100.memory)
    return f"{row.stage.name} needs {needed} on a device, and an A100 or H100 has {there}: {advice}"


def _count(devices: int) -> str:
    return "one device" if devices == 1 else f"{devices} devices"


def flops(row: Row) -> float:
    """FLOPs of a stage on all its devices."""
    return row.stage.work.flops * row.devices


def device_bytes(row: Row) -> float:
    """Peak memory of one GPU, CUDA's own included."""
    held = row.stage.memory.total
    return held + CONTEXT if held else 0


def short(model: str) -> str:
    """A model's name without its revision."""
    return model.partition("@")[0]


def quantity(value: float) -> str:
    """Three digits and a prefix: 1.23 P."""
    for prefix, unit in (("Z", 1e21), ("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= unit:
            return f"{value / unit:.3g} {prefix}"
    return f"{value:.0f}"


def size(value: float) -> str:
    """Bytes in decimal units."""
    return f"{quantity(value)}B" if value >= 1e3 else f"{value:.0f} B"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, three digits."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 3600 else f"{seconds / 3600:,.1f} h"


# --- for programs -----------------------------------------------------------------------------------------------------


def record(plan: Plan) -> dict:
    """The plan in seconds, bytes and FLOPs, stage by stage."""
    return {
        "scale": plan.scale,
        "devices": plan.setup.devices,
        "sharding": plan.setup.sharding,
        "notes": list(plan.notes),
        "stages": [
            {
                "stage": row.stage.name,
                "model": row.stage.model,
                "cached": row.cached,
                "devices": row.devices,
                "tokens": row.stage.tokens,
                "flops": flops(row),
                "seconds": row.seconds,
                "device_memory_bytes": {**row.stage.memory.parts, "runtime": CONTEXT},
                "host_memory_bytes": row.stage.memory.host,
                "memory_here_bytes": row.here.parts if row.here else None,
                "disk_bytes": row.stage.disk,
                "scratch_bytes": row.stage.scratch,
            }
            for row in plan.rows
        ],
    }
