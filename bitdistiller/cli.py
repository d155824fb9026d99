"""The command line: one thin command a pipeline stage. It holds no logic and imports heavy modules only when called."""

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from bitdistiller.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Regenerate, judge and write up the claims of BitDistiller and its follow-up. `make reproduce` runs it all; "
    "these are the single stages, run from a folder with a params.yaml.",
)

ParamsPath = Annotated[Path, typer.Option("--params", help="Parameter file of the scale.")]
ARTIFACTS, RESULTS = Path("artifacts"), Path("results")
DEFAULT_PARAMS = Path("params.yaml")


def main() -> None:
    """Entry point: a ``UserError`` becomes one sentence on stderr and exit status 2."""
    try:
        app()
    except UserError as error:
        _fail(str(error))
    except Exception as error:
        if "No space left on device" not in str(error):
            raise
        _fail("the disk is full; free some space and run the same command again: what is done is kept")


def _fail(sentence: str) -> None:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


def _load(path: Path):
    from bitdistiller.config import load_params

    return load_params(path)


def _write_json(record: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")


def _write_scores(scores, items, folder: Path) -> None:
    from bitdistiller.results import write_items

    write_items(items, folder / "items.csv")
    scores.write(folder / "scores.json")
    _write_json(scores.metrics(), folder / "metrics.json")
    for score in scores.scores:
        print(
            f"{scores.run}: {score.task} {score.metric} {score.value:.4g} [{score.low:.4g}, {score.high:.4g}], "
            f"n = {score.n}"
        )


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

    loaded = _load(params)
    check_params(loaded)
    check_environment(loaded)


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
def text(
    name: Annotated[str, typer.Argument(help="Entry under `training_text`, `student_text` or `instruction_text`.")],
    params: ParamsPath = DEFAULT_PARAMS,
) -> None:
    """Make a training text: continuations or answers that a model writes, and corpus text."""
    import torch

    from bitdistiller.config import entry
    from bitdistiller.data.generate import make_text
    from bitdistiller.models import load_model
    from bitdistiller.provenance import Stopwatch, environment
    from bitdistiller.quant import bake

    loaded, watch = _load(params), Stopwatch()
    torch.set_num_threads(loaded.threads)
    section = entry(loaded.texts, "training_text, student_text and instruction_text", name)
    path = ARTIFACTS / "text" / f"{name}.jsonl"
    if name in loaded.student_text:
        from bitdistiller.distill.student import prepare_student

        bounds = ARTIFACTS / "clip" / f"{section.generator}.safetensors"
        source = prepare_student(loaded.quantizers[section.generator], bounds)
        bake(source.model)
    else:
        source = load_model(section.generator)
    if name in loaded.instruction_text:
        from bitdistiller.reasoning.instruction_text import answer_instructions
        from bitdistiller.reasoning.writing import unfinished

        record = answer_instructions(section, source, path)
    else:
        record = make_text(section, source, path)
    record |= {"environment": environment().model_dump(), "cost": watch.cost().model_dump()}
    _write_json(record, RESULTS / "text" / f"{name}.json")
    if name in loaded.instruction_text:
        shutil.rmtree(unfinished(path), ignore_errors=True)


@app.command()
def teacher(
    name: Annotated[str, typer.Argument(help="Entry under `data`.")], params: ParamsPath = DEFAULT_PARAMS
) -> None:
    """Cache the teacher's hidden states and confidence (gamma) over a training text."""
    import torch

    from bitdistiller.config import entry
    from bitdistiller.distill.teacher import cache_teacher

    loaded = _load(params)
    torch.set_num_threads(loaded.threads)
    section = entry(loaded.data, "data", name)
    text = ARTIFACTS / "text" / f"{section.training_text}.jsonl"
    length = loaded.texts[section.training_text].length
    weights = {"fp32": torch.float32, "bf16": torch.bfloat16}[section.teacher_weights]
    record = cache_teacher(section.teacher, length, text, ARTIFACTS / "teacher" / name, weights)
    record.write(RESULTS / "teachers" / f"{name}.json")
    print(f"{name}: gamma {record.gammas['label']:.4f} over {record.tokens:,} tokens")


@app.command()
def clip(
    name: Annotated[str, typer.Argument(help="Entry under `quantizers`.")], params: ParamsPath = DEFAULT_PARAMS
) -> None:
    """Search the asymmetric clipping bounds that a student starts from."""
    import torch

    from bitdistiller.config import entry
    from bitdistiller.distill.clipping import search_model

    loaded = _load(params)
    torch.set_num_threads(loaded.threads)
    record = search_model(entry(loaded.quantizers, "quantizers", name), ARTIFACTS / "clip" / f"{name}.safetensors")
    print(f"{name}: bounds of {record['groups']:,} groups in {record['layers']} layers")


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="Entry under `runs`.")], params: ParamsPath = DEFAULT_PARAMS
) -> None:
    """Train one student; after an interruption the same command resumes from the last checkpoint."""
    from bitdistiller.config import entry
    from bitdistiller.distill.trainer import checkpoints_of
    from bitdistiller.distill.trainer import train as train_run
    from bitdistiller.training import processes

    loaded = _load(params)
    entry(loaded.runs, "runs", name)
    if loaded.accelerate and not processes.launched():
        processes.launch(params.parent / loaded.accelerate, ["train", name, "--params", str(params)])
        return
    with processes.joined():
        record = train_run(name, loaded, ARTIFACTS)
        if processes.is_main():
            record.write(RESULTS / "runs" / name / "train.json")
            shutil.rmtree(checkpoints_of(name, ARTIFACTS), ignore_errors=True)


@app.command()
def peer(
    name: Annotated[str, typer.Argument(help="Entry under `peers`.")],
    python: Annotated[
        Path | None,
        typer.Option(help="Interpreter of the peers' environment.", show_default="that of `make peers`"),
    ] = None,
    params: ParamsPath = DEFAULT_PARAMS,
) -> None:
    """Make a model low-bit with another project's quantizer (GPTQ, HQQ, AutoRound), in its own environment."""
    import torch

    from bitdistiller.peers import quantize_with_peer

    loaded = _load(params)
    torch.set_num_threads(loaded.threads)
    record = quantize_with_peer(name, loaded, ARTIFACTS, python)
    print(
        f"{name}: {record.quantized_parameters:,} weights of {record.bits_per_weight:.3g} bits in "
        f"{record.cost.seconds:.0f} s"
    )


@app.command()
def evaluate(
    name: Annotated[str, typer.Argument(help="Entry under `runs`, `baselines` or `ptq`.")],
    params: ParamsPath = DEFAULT_PARAMS,
) -> None:
    """Score one student or baseline: held-out perplexity and tasks, with per-item results."""
    from bitdistiller.evaluate.run import evaluate_run

    scores, items = evaluate_run(name, _load(params), ARTIFACTS)
    _write_scores(scores, items, RESULTS / "runs" / name)


@app.command()
def reason(
    name: Annotated[str, typer.Argument(help="Entry under `reasoning`: a run, baseline, rounded model or peer.")],
    params: ParamsPath = DEFAULT_PARAMS,
    without_isolation: Annotated[
        bool,
        typer.Option(
            "--run-model-code-without-isolation", help="Run what the model writes as you, free to read, write and send."
        ),
    ] = False,
) -> None:
    """Score knowledge, reasoning and code: MMLU, GSM8K, HumanEval. Goes on where an interrupted call stopped."""
    from bitdistiller.reasoning.run import score_reasoning
    from bitdistiller.reasoning.writing import unfinished

    scores, items = score_reasoning(name, _load(params), ARTIFACTS, without_isolation)
    _write_scores(scores, items, RESULTS / "runs" / name / "reasoning")
    shutil.rmtree(unfinished(ARTIFACTS / "answers" / f"{name}.jsonl"), ignore_errors=True)


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
    for line in export_run(name, _load(params), ARTIFACTS, to, out, dtype, python):
        print(line)


@app.command()
def study(
    name: Annotated[str, typer.Argument(help="Entry under `studies`.")], params: ParamsPath = DEFAULT_PARAMS
) -> None:
    """Judge the claims of one study from the results of its runs."""
    from bitdistiller.analysis.study import run_study

    run_study(name, _load(params), RESULTS)


@app.command()
def report(params: ParamsPath = DEFAULT_PARAMS) -> None:
    """Write the report's pages, tables and figures into reports/ from results on disk; open reports/index.html."""
    from bitdistiller.report import build_report

    print(build_report(_load(params), params, RESULTS, Path("reports")))


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

    loaded = _load(params)
    for line in trace_cell(cell, all_scales(loaded, params, RESULTS), published_dir(loaded)):
        print(line)


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
        configuration = _load(path).accelerate
        devices = asked_for(path.parent / configuration) if configuration else 1
    found = make_plan(path, Setup(devices, sharding), efficiency, ARTIFACTS)
    print("\n".join(lines(found)))
    if json_out is not None:
        _write_json(record(found), json_out)


@app.command()
def publish(params: ParamsPath = DEFAULT_PARAMS) -> None:
    """Copy what this scale's studies found to reports/scales of the project: the report of every scale shows it."""
    from bitdistiller.report import publish as publish_scale

    print(publish_scale(params, RESULTS))


@app.command()
def verdicts(params: ParamsPath = DEFAULT_PARAMS) -> None:
    """Print one line a claim: outcome, effect and 95 % interval."""
    from bitdistiller.report import own_scale, verdict_lines

    for line in verdict_lines(own_scale(_load(params), params, RESULTS)):
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
def audit(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="CSV files, or folders of them.", show_default="reports/published")
    ] = None,
    claims: Annotated[
        Path | None, typer.Option(help="Claim file (YAML).", show_default="claims.yaml beside the tables")
    ] = None,
    items: Annotated[Path | None, typer.Option(help="Item counts beyond the known ones (YAML, `name: n`).")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write the findings as JSON.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with status 1 if anything more than a last digit is found.")
    ] = False,
    calibrate: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Audit N clean generated tables and N/4 of each corruption instead."),
    ] = None,
) -> None:
    """Look for printed numbers that do not add up: averages, standard errors, item counts, repeats, labels, claims.

    Findings leave the exit status at 0 unless --strict is given; bad input is status 2. How often the checks err is
    printed with every audit, and in full by --calibrate 1000.
    """
    from bitdistiller.analysis.audit import show

    if calibrate:
        from bitdistiller.analysis.audit.calibrate import calibrate as measure

        report = measure(calibrate)
        shown = show.calibration_lines(report)
    else:
        from bitdistiller.analysis.audit import audit as audit_files

        report = audit_files(paths or [Path("reports/published")], claims, items)
        shown = show.lines(report)
    print("\n".join(shown))
    if json_out is not None:
        report.write(json_out)
    if strict and not calibrate and any(finding.certainty != "last digit" for finding in report.findings):
        raise typer.Exit(1)


@app.command(name="new-study")
def new_study(
    name: Annotated[str, typer.Argument(help="Name of the study: its file and its part of params.yaml.")],
    params: ParamsPath = DEFAULT_PARAMS,
) -> None:
    """Write the skeleton of a study and print the part of params.yaml that it needs."""
    from bitdistiller.analysis.study import studies_dir
    from bitdistiller.authoring import new_study as write

    path, section = write(name, studies_dir(_load(params)))
    print(f"{path} is written: put in its question, source and claims; then name its runs in {params}:\n\n{section}")


@app.command()
def seeds(
    count: Annotated[int, typer.Argument(help="Seeds of every trained or random model.")],
    params: ParamsPath = DEFAULT_PARAMS,
) -> None:
    """Write a scale in which every run has several seeds, under profiles/seeds-COUNT."""
    from bitdistiller.authoring import write_seeds

    _load(params)
    print(write_seeds(params.absolute(), count, params.absolute().parent / "profiles" / f"seeds-{count}"))


@app.command()
def formats(
    group_size: Annotated[int, typer.Option(min=1, help="Weights a group.")] = 128,
    bits: Annotated[
        list[int] | None, typer.Option(help="Bit width to show; give it again for another.", show_default="1 2 3 4")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Model whose layers are a source; `none` for synthetic weights.")
    ] = "smollm2-135m",
    out: Annotated[Path | None, typer.Option(help="Also write the table as CSV.")] = None,
) -> None:
    """Show what each format does to weights before training: error, zeros, entropy of the codes, bits a weight.

    Rows that are clipped have each group's range shrunk for the least weight error.
    """
    import pandas as pd
    from tqdm import tqdm

    from bitdistiller.analysis.formats import compare

    rows = compare(group_size, None if model == "none" else model, bits or [1, 2, 3, 4])
    table = pd.DataFrame(tqdm(rows, desc="formats", unit="row", leave=False))
    print(table.to_string(index=False, float_format="{:.3f}".format))
    if out is not None:
        table.to_csv(out, index=False)


@app.command()
def tokenizer(
    kind: Annotated[str, typer.Argument(help="Entry under `tokenizers` of pretrain/params.yaml.")],
    params: ParamsPath = DEFAULT_PARAMS,
) -> None:
    """Train a tokenizer of the micro models (part of `make pretrain`)."""
    from bitdistiller.models.pretrain import load_pretrain_params, pretrain_tokenizer

    pretrain_tokenizer(kind, load_pretrain_params(params).text, ARTIFACTS / "tokenizers" / kind)


@app.command()
def pretrain(
    name: Annotated[str, typer.Argument(help="Entry under `models` of pretrain/params.yaml.")],
    params: ParamsPath = DEFAULT_PARAMS,
) -> None:
    """Pretrain a micro model until held-out loss stops falling (part of `make pretrain`)."""
    from bitdistiller.models.pretrain import load_pretrain_params
    from bitdistiller.models.pretrain import pretrain as pretrain_model

    pretrain_model(name, load_pretrain_params(params), ARTIFACTS)


@app.command()
def sandbox(
    program: Annotated[
        Path | None, typer.Argument(help="Python file to run as a module.", metavar="FILE", show_default=False)
    ] = None,
    tests: Annotated[
        Path | None,
        typer.Option(help="File of tests that call its functions.", show_default="none: it runs to its end"),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Say what isolates a program on this machine.")] = False,
    attacks: Annotated[bool, typer.Option("--attacks", help="Run hostile programs, and show how each ended.")] = False,
    without_isolation: Annotated[
        bool,
        typer.Option("--run-model-code-without-isolation", help="Run FILE as you, free to read, write and send."),
    ] = False,
) -> None:
    """Run a program that nobody has read, in a sandbox; exit status 1 unless it passes its tests."""
    from bitdistiller.sandbox.commands import attack_lines, check_lines, program_lines

    if [program is not None, check, attacks].count(True) != 1 or (without_isolation and program is None):
        raise UserError("sandbox takes either FILE or --check or --attacks, and only FILE runs without isolation")
    if program is not None:
        lines, good = program_lines(program, tests, without_isolation)
    else:
        lines, good = check_lines() if check else attack_lines()
    print("\n".join(lines))
    sys.exit(0 if good else 1)
