"""One thin command a stage of dvc.yaml, and of pretrain/dvc.yaml. Each can be run by itself."""

import os
import shutil
from pathlib import Path
from typing import Annotated

import typer

from bitdistiller.cli.base import ARTIFACTS, DEFAULT_PARAMS, RESULTS, ParamsPath, app, load, write_json, write_scores


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

    loaded, watch = load(params), Stopwatch()
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
    write_json(record, RESULTS / "text" / f"{name}.json")
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

    loaded = load(params)
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

    loaded = load(params)
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
    from bitdistiller.launch import VARIABLE
    from bitdistiller.training import processes

    loaded = load(params)
    entry(loaded.runs, "runs", name)
    if loaded.accelerate and not processes.launched():
        os.environ.pop(VARIABLE, None)  # a warm process runs a command alone
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

    loaded = load(params)
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

    scores, items = evaluate_run(name, load(params), ARTIFACTS)
    write_scores(scores, items, RESULTS / "runs" / name)


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

    scores, items = score_reasoning(name, load(params), ARTIFACTS, without_isolation)
    write_scores(scores, items, RESULTS / "runs" / name / "reasoning")
    shutil.rmtree(unfinished(ARTIFACTS / "answers" / f"{name}.jsonl"), ignore_errors=True)


@app.command()
def study(
    name: Annotated[str, typer.Argument(help="Entry under `studies`.")], params: ParamsPath = DEFAULT_PARAMS
) -> None:
    """Judge the claims of one study from the results of its runs."""
    from bitdistiller.analysis.study import run_study

    run_study(name, load(params), RESULTS)


@app.command()
def report(params: ParamsPath = DEFAULT_PARAMS) -> None:
    """Write the report's pages, tables and figures into reports/ from results on disk; open reports/index.html."""
    from bitdistiller.report import build_report

    print(build_report(load(params), params, RESULTS, Path("reports")))


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
