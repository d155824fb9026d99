"""What `bitdistiller plan` predicts beside what happens: time and memory of real stages, each in a fresh process.

Small parameter files name the models; their stages run through the ordinary commands, one after the other, and the
plan of the same file is compared with what each took: CPU time (with one thread that is what the wall clock would
show on an idle machine; both are written down) and peak resident memory. The machine is measured first, in this call,
by the benchmark that `bitdistiller plan` runs; nothing is fitted to the stages. Run with ``python
benchmarks/plan.py``, or for one model with ``--models smollm2-135m``: results of other models in the file are kept.
"""

import argparse
import json
import os
import sys
import tempfile
from contextlib import chdir
from pathlib import Path

import yaml
from tqdm import tqdm

from bitdistiller.config import load_params
from bitdistiller.plan.calibrate import Calibration, calibration, process_cost
from bitdistiller.plan.stages import Setup, Stage, stages
from bitdistiller.provenance import environment

MODELS = ("micro-1m", "micro-3m", "micro-6m", "smollm2-135m")
COMMANDS = {
    "text": "text",
    "teacher": "teacher",
    "clip": "clip",
    "train": "train",
    "baseline": "evaluate",
    "evaluate": "evaluate",
}
_TEXTS = ["wikipedia", "encyclopedia", "web"]


def scale(model: str) -> dict:
    """Parameters of a scale of one run, whose stages take seconds to a minute each."""
    small = model.startswith("micro")
    length = 128 if small else 256
    return {
        "root": ".", "weights": ".", "scale": "benchmark", "threads": 1,
        "training_text": {"text": {
            "generator": model, "sequences": 128 if small else 8, "corpus_sequences": 0 if small else 16,
            "text": _TEXTS, "length": length, "prompt_length": 16, "temperature": 0.7, "top_p": 1.0,
            "batch_size": 64 if small else 8, "seed": 0}},
        "student_text": {}, "instruction_text": {}, "reasoning": {}, "ptq": {}, "peers": {}, "studies": {},
        "data": {"data": {"teacher": model, "training_text": "text"}},
        "quantizers": {"int2": {
            "model": model, "format": "int-asym", "bits": 2, "group_size": 64, "clip": "asymmetric", "scales": "fitted",
            "estimator": "pass-through", "text": _TEXTS, "calibration_tokens": 512, "calibration_length": 256}},
        "runs": {"run": {
            "quantizer": "int2", "data": "data", "loss": "cakld", "gamma": "label", "temperature": 1.0,
            "ce_weight": 0.0, "allow_vocabulary_mismatch": False, "steps": 20 if small else 3, "batch_tokens": 2048,
            "micro_batches": 1, "learning_rate": 1.0e-4, "warmup_steps": 1, "weight_decay": 0.0,
            "checkpoint_every": 20 if small else 3, "validate_every": 20 if small else 3, "validation_text": _TEXTS,
            "validation_sequences": 8, "seed": 0}},
        "baselines": {"full": {"model": model, "weights": "pretrained", "seed": 0}},
        "evaluation": {
            "perplexity": {"heldout": {"text": _TEXTS, "window": length, "max_tokens": 16000 if small else 4000}},
            "tasks": {"continuation": {"limit": 240 if small else 30, "shots": 0}}, "batch_tokens": 4096, "seed": 0},
    }  # fmt: skip


def run(command: list[str], folder: Path) -> dict[str, float]:
    """CPU and wall seconds and peak resident bytes of a `bitdistiller` command in a process of its own."""
    program = [sys.executable, "-c", "from bitdistiller.cli import main; main()", *command]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (folder / "log").open("w") as log:
        cost = process_cost(program, cwd=folder, stdout=log, stderr=log, env=variables)
    if cost.status:
        sys.exit((folder / "log").read_text()[-2000:])
    return {"cpu_seconds": cost.cpu_seconds, "wall_seconds": cost.wall_seconds, "peak_bytes": cost.peak_bytes}


def compare(model: str, measured: Calibration) -> list[dict]:
    """Predicted against measured, stage by stage, of one model's scale."""
    host = measured.host()
    with tempfile.TemporaryDirectory() as written:
        folder, found = Path(written), []
        (folder / "params.yaml").write_text(yaml.safe_dump(scale(model)))
        for kind, command in tqdm(COMMANDS.items(), desc=model, unit="stage"):
            with chdir(folder):
                stage = _stage(kind)
            taken = run([command, stage.key], folder)
            predicted, held = host.seconds(stage.work), stage.memory.on_host(host.runtime).total
            found.append({
                "model": model, "stage": kind, "predicted_seconds": predicted, **taken,
                "time_ratio": predicted / taken["cpu_seconds"],
                "predicted_bytes": held, "memory_ratio": held / taken["peak_bytes"],
            })  # fmt: skip
    return found


def _stage(kind: str) -> Stage:
    found = stages(load_params("params.yaml"), Path("results"), Setup(host=True))
    return next(stage for stage in found if stage.kind == kind)


def table(rows: list[dict]) -> str:
    """Markdown that the documentation shows."""
    lines = [
        "| model | stage | predicted s | measured s | ratio | predicted MB | measured MB | ratio |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['model']} | {row['stage']} | {row['predicted_seconds']:.1f} | {row['cpu_seconds']:.1f} | "
        f"{row['time_ratio']:.2f} | {row['predicted_bytes'] / 1e6:,.0f} | {row['peak_bytes'] / 1e6:,.0f} | "
        f"{row['memory_ratio']:.2f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, and write the JSON and the table that documents read."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/plan.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as fresh:
        measured = calibration(1, Path(fresh))
    before = json.loads(arguments.out.read_text())["stages"] if arguments.out.exists() else []
    rows = [row for model in arguments.models for row in compare(model, measured)]
    kept = [row for row in before if row["model"] not in arguments.models]
    rows = sorted(kept + rows, key=lambda row: (MODELS.index(row["model"]), list(COMMANDS).index(row["stage"])))
    result = {
        "stages": rows,
        "largest_error": {
            "time": max(abs(row["time_ratio"] - 1) for row in rows),
            "memory": max(abs(row["memory_ratio"] - 1) for row in rows),
        },
        "load": os.getloadavg()[0],
        "calibration": measured.model_dump(),
        "environment": environment().model_dump(),
    }
    print(table(rows))
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    arguments.out.with_suffix(".md").write_text(table(rows))


if __name__ == "__main__":
    main()
