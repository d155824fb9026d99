"""Commands about a whole scale: set up, ask the price, run, read, compare, pass on, extend."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from bitdistiller.cli.base import ARTIFACTS, DEFAULT_PARAMS, RESULTS, ParamsPath, app, load, write_json
from bitdistiller.errors import UserError


@app.command()
def fetch() -> None:
    """Download and verify every pinned asset, so that nothing later needs a network."""
    from bitdistiller.assets import fetch as fetch_asset
    from bitdistiller.assets import pins

    for asset in pins().values():
        print(f"{asset.name}: {fetch_asset(asset)}")


@app.command()
def check(params: ParamsPath = DEFAULT_PARAMS) -> None:
    """Resolve every name in the parameter file before anything is computed."""
    from bitdistiller.check import check as check_params
    from bitdistiller.check import check_environment

    loaded = load(params)
    check_params(loaded)
    check_environment(loaded)


@app.command()
def plan(
    profile: Annotated[
        str | None,
        typer.Option(help="Scale in profiles/NAME: short for `--params profiles/NAME/params.yaml`.", metavar="NAME"),
    ] = None,
    params: ParamsPath = DEFAULT_PARAMS,
    devices: Annotated[
        int | None,
        typer.Option(
            min=1, help="GPUs that each run trains on.", show_default="num_processes of what `accelerate` names"
        ),
    ] = None,
    sharding: Annotated[
        str | None,
        typer.Option(
            help="`none`: every device holds all of a student (DDP); `full`: an equal part (FSDP).",
            show_default="as each run says",
        ),
    ] = None,
    efficiency: Annotated[
        float, typer.Option(min=0.01, max=1, help="Share of a GPU's peak that matrix products are assumed to reach.")
    ] = 0.4,
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write every stage as JSON.")] = None,
) -> None:
    """Say what a scale costs before it starts: FLOPs, memory by part, disk, hours on GPUs and here, what is done.

    Nothing is run but, the first time, a benchmark of this machine that takes some twenty seconds.
    """
    from bitdistiller.plan.report import lines, make_plan, profile_params, record
    from bitdistiller.plan.stages import Setup
    from bitdistiller.training.processes import asked_for

    if sharding not in (None, "none", "full"):
        raise UserError(f"--sharding is none or full, not {sharding!r}")
    path = profile_params(profile) if profile else params
    if devices is None:
        configuration = load(path).accelerate
        devices = asked_for(path.parent / configuration) if configuration else 1
    found = make_plan(path, Setup(devices, sharding), efficiency, ARTIFACTS)
    print("\n".join(lines(found)))
    if json_out is not None:
        write_json(record(found), json_out)


@app.command()
def reproduce(
    targets: Annotated[
        list[str] | None, typer.Argument(help="Stages, as `dvc repro` takes them.", show_default="all of this folder")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", min=1, help="Stages at a time.", show_default="cores / threads; 1 with a GPU"),
    ] = None,
    cold: Annotated[bool, typer.Option("--cold", help="Let every stage import everything itself.")] = False,
    remote: Annotated[
        str | None,
        typer.Option(
            "--remote",
            help="DVC remote to share: fetch what it has of this instead of computing it, and put "
            "there what is computed.",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            help="Run stages on the Ray cluster at this address: HOST:PORT, `auto` for the one that "
            "this machine belongs to, `local` for one of this machine alone.",
        ),
    ] = None,
    cpus: Annotated[
        int | None, typer.Option("--cpus-per-stage", min=1, help="With --ray.", show_default="threads of params.yaml")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option("--gpus-per-stage", min=0, help="With --ray.", show_default="1 if the cluster has any")
    ] = None,
    retries: Annotated[
        int, typer.Option("--retries", min=0, help="With --ray: other attempts at a stage whose machine was lost.")
    ] = 5,
) -> None:
    """Run every stage that is not up to date, as `dvc repro` does, only faster, or on many machines."""
    from bitdistiller.reproduce import Resources
    from bitdistiller.reproduce import reproduce as reproduce_stages

    reproduce_stages(targets or [], jobs, cold, remote, ray, Resources(cpus, gpus, retries))


@app.command()
def verdicts(params: ParamsPath = DEFAULT_PARAMS) -> None:
    """Print one line a claim: outcome, effect and 95 % interval."""
    from bitdistiller.report import own_scale, verdict_lines

    for line in verdict_lines(own_scale(load(params), params, RESULTS)):
        print(line)


@app.command()
def trace(
    cell: Annotated[
        str, typer.Argument(help="TABLE.csv:ROW,COLUMN of reports/tables; labels, or numbers from 1.", metavar="CELL")
    ],
    params: ParamsPath = DEFAULT_PARAMS,
) -> None:
    """Print where a number of a table comes from: study, runs, parameters, data, commit, machine, command."""
    from bitdistiller.analysis.study import published_dir
    from bitdistiller.report import all_scales
    from bitdistiller.report.trace import trace as trace_cell

    loaded = load(params)
    for line in trace_cell(cell, all_scales(loaded, params, RESULTS), published_dir(loaded)):
        print(line)


@app.command()
def compare(
    before: Annotated[
        str, typer.Argument(metavar="A", help="Folder of a scale, or a git revision: REV or REV:FOLDER.")
    ],
    after: Annotated[str, typer.Argument(metavar="B", help="What to compare it with.")],
    everything: Annotated[bool, typer.Option("--all", help="Show all scores, verdicts and costs.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write it to this file.")] = None,
) -> None:
    """Print as Markdown what differs between two sets of results beyond noise."""
    from bitdistiller.report.difference import compare as compare_results

    text = compare_results(before, after, everything)
    print(text, end="")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)


@app.command()
def publish(params: ParamsPath = DEFAULT_PARAMS) -> None:
    """Copy what this scale's studies found to reports/scales of the project: the report of every scale shows it."""
    from bitdistiller.report import publish as publish_scale

    print(publish_scale(params, RESULTS))


@app.command()
def export(
    name: Annotated[str, typer.Argument(help="Entry under `runs`.")],
    to: Annotated[str, typer.Option(help="Container: native, compressed-tensors or gptq.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write.", show_default="artifacts/export/NAME-TO")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Of the weights that are not quantized.", show_default="float32, or float16 for gptq"),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Load the result afresh and compare its logits.")] = False,
    verify_python: Annotated[
        str | None, typer.Option(help="Interpreter of the environment to verify in.", show_default="this one")
    ] = None,
    params: ParamsPath = DEFAULT_PARAMS,
) -> None:
    """Write a trained student as a packed checkpoint that transformers or other software loads."""
    from bitdistiller.export.run import export_run

    python = verify_python or sys.executable if verify or verify_python else None
    for line in export_run(name, load(params), ARTIFACTS, to, out, dtype, python):
        print(line)


@app.command()
def seeds(
    count: Annotated[int, typer.Argument(help="Seeds of every trained or random model.")],
    params: ParamsPath = DEFAULT_PARAMS,
) -> None:
    """Write a scale in which every run has several seeds, under profiles/seeds-COUNT."""
    from bitdistiller.authoring import write_seeds

    load(params)
    print(write_seeds(params.absolute(), count, params.absolute().parent / "profiles" / f"seeds-{count}"))


@app.command(name="new-study")
def new_study(
    name: Annotated[str, typer.Argument(help="Name of the study: its file and its part of params.yaml.")],
    params: ParamsPath = DEFAULT_PARAMS,
) -> None:
    """Write the skeleton of a study and print the part of params.yaml that it needs."""
    from bitdistiller.analysis.study import studies_dir
    from bitdistiller.authoring import new_study as write

    path, section = write(name, studies_dir(load(params)))
    print(f"{path} is written: put in its question, source and claims; then name its runs in {params}:\n\n{section}")
