"""The paper profiles: every published row has its run, and shrunken copies go through the pipeline offline."""

import csv
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml
from huggingface_hub import constants
from typer.testing import CliRunner

from bitdistiller.analysis.study import load_study, study_names, study_params
from bitdistiller.check import check
from bitdistiller.cli import app
from bitdistiller.config import load_params
from bitdistiller.data import hub
from bitdistiller.data.hub import hub_data, model_repository
from bitdistiller.evaluate import tasks
from bitdistiller.evaluate.benchmarks import rows
from tests import tiny
from tests.hub_world import COMMIT, cache_repository, folder_files

ROOT = Path(__file__).parent.parent
PUBLISHED = ROOT / "reports" / "published"
PROFILES = ("paper", "paper-3b", "paper-llama2", "paper-code", "paper-math")
PARAMS = {name: load_params(ROOT / "profiles" / name / "params.yaml") for name in PROFILES}

# --- every row of the published tables --------------------------------------------------------------------------

PLACES = {  # of a published model: profile, and what its runs' names begin with
    "TinyLlama-1.1B": ("paper", "1b"),
    "Llama-3.2-3B": ("paper-3b", "3b"),
    "Llama-2-7B": ("paper-llama2", "7b"),
    "LLaMA-2-7B": ("paper-llama2", "7b"),
    "LLaMA-2-13B": ("paper-llama2", "13b"),
}
METHODS = {"BF16": "full", "RTN": "rtn", "GPTQ": "gptq", "LLM-QAT": "llm-qat", "BitDistiller": ""}
OTHER_PEOPLE = {"AWQ", "OmniQuant", "EfficientQAT"}
VARIANTS = {
    "": "",
    "CE+CAKLD": "ce-t20-e4",
    "7B teacher": "int2-by-7b",
    "3B teacher": "int2-by-2.7b",
    "3x data": "int2-3x",
}
LEFT_OUT = {  # (file, columns that say which) -> why no run answers to it
    ("bitdistiller_cost.csv", "LLaMA-2-70B"): "of no other table; its scores are not published there",
    ("bitdistiller_reasoning.csv", "gsm8k_metamath_3b"): "no weights of that name are public",
}


def method_name(method: str, bits: str) -> str:
    """Part of a run's name that stands for a method at a width; BitDistiller's is its format's at that width."""
    if method == "BF16":
        return "full"
    return ({"3": "nf", "2": "int"}[bits] if method == "BitDistiller" else METHODS[method]) + bits


def main_table(row: dict) -> list[tuple[str, str]]:
    profile, prefix = PLACES[row["model"]]
    return [(profile, f"{prefix}-{method_name(row['method'], row['bits'])}")]


def reasoning(row: dict) -> list[tuple[str, str]]:
    """One run a column: the table has a row a method and a column a model."""
    columns = [column for column in row if column.startswith(("humaneval_", "gsm8k_"))]
    wanted = [column for column in columns if ("bitdistiller_reasoning.csv", column) not in LEFT_OUT]
    return [
        (
            "paper-code" if column.startswith("humaneval") else "paper-math",
            f"{column.rpartition('_')[2]}-{method_name(row['method'], row['bits'])}",
        )
        for column in wanted
    ]


def cost(row: dict) -> list[tuple[str, str]]:
    if row["model"] == "WizardCoder-7B":
        return [("paper-code", "7b-int2")]
    profile, prefix = PLACES[row["model"]]
    return [(profile, f"{prefix}-{method_name(row['method'], '2')}")]


def bits(row: dict) -> list[tuple[str, str]]:
    profile, prefix = PLACES[row["model"]]
    name = {"16": "full", "random": "random"}.get(row["bits"], f"int{row['bits']}")
    return [(profile, f"{prefix}-{name}")]


def teacher(row: dict) -> list[tuple[str, str]]:
    profile, prefix = PLACES[row["student"]]
    by = {"self": "", "Llama-2-7B": "-by-7b", "Llama-3B": "-by-2.7b"}[row["teacher"]]
    return [(profile, f"{prefix}-int{row['bits']}{by}")]


def author(row: dict) -> list[tuple[str, str]]:
    profile, prefix = PLACES[row["student"]]
    by = {"TinyLlama-1.1B": "", "Llama-2-7B": "-reads-7b", "Llama-3B": "-reads-2.7b"}[row["data_generated_by"]]
    return [(profile, f"{prefix}-int{row['bits']}{by}")]


def group(row: dict) -> list[tuple[str, str]]:
    profile, prefix = PLACES[row.get("model") or row["student"]]
    size = group_size(row)
    return [(profile, f"{prefix}-int{row['bits']}{'' if size == 128 else f'-g{size}'}")]


def group_size(row: dict) -> int:
    """That of the row; where it is mislabelled in print, that of the row with its perplexity elsewhere."""
    if "printed_label" in row:
        (row,) = (other for other in printed("followup_repo_groups.csv") if other["ppl"] == row["ppl"])
    return int(row.get("group_size") or 128)


def temperature(row: dict) -> list[tuple[str, str]]:
    profile, prefix = PLACES[row["student"]]
    return [(profile, f"{prefix}-ce-t{row['kd_temperature']}{'-e4' if row['epochs'] == '4' else ''}")]


def repository(row: dict) -> list[tuple[str, str]]:
    profile, prefix = PLACES[row["model"]]
    return [(profile, f"{prefix}-{VARIANTS[row['variant']] or row['format'] + row['bits']}")]


TABLES = {
    "bitdistiller_llama2.csv": main_table,
    "bitdistiller_reasoning.csv": reasoning,
    "bitdistiller_cost.csv": cost,
    "followup_bits.csv": bits,
    "followup_teacher.csv": teacher,
    "followup_data.csv": author,
    "followup_group.csv": group,
    "followup_kd_temperature.csv": temperature,
    "followup_repo_groups.csv": group,
    "followup_repo_results.csv": repository,
}


def printed(file: str) -> list[dict]:
    with open(PUBLISHED / file, newline="") as handle:
        return list(csv.DictReader(handle))


def left_out(file: str, row: dict) -> bool:
    return row.get("method") in OTHER_PEOPLE or (file, row.get("model", "")) in LEFT_OUT


def test_every_published_table_is_looked_at():
    assert {path.name for path in PUBLISHED.glob("*.csv")} == set(TABLES)


@pytest.mark.parametrize("file", TABLES)
def test_every_published_row_has_its_run(file):
    kept = [row for row in printed(file) if not left_out(file, row)]
    assert kept
    for row in kept:
        for profile, name in TABLES[file](row):
            assert name in PARAMS[profile].scored, (profile, name, row)


@pytest.mark.parametrize("file", TABLES)
def test_a_run_is_what_its_row_says(file):
    """Not only its name: bits, group size, method, epochs and temperature of the row are those of the run."""
    for row in printed(file):
        for profile, name in [] if left_out(file, row) else TABLES[file](row):
            params = PARAMS[profile]
            made = params.runs.get(name) or params.ptq.get(name) or params.peers.get(name)
            if made is None:
                assert params.baselines[name].weights == ("random" if row["bits"] == "random" else "pretrained")
                continue
            quantizer = params.quantizers[made.quantizer]
            assert quantizer.bits == int(row.get("bits") or 2)
            assert quantizer.group_size == group_size(row)
            if row.get("format") or file == "followup_bits.csv":
                assert quantizer.format == {"int": "int-asym", "nf": "nf-asym"}[row.get("format") or "int"]
            if row.get("method") in ("RTN", "GPTQ", "LLM-QAT"):
                assert quantizer.clip == "none"
                assert quantizer.format == ("int-sym" if row["method"] == "LLM-QAT" else "int-asym")
            if row.get("kd_temperature"):
                assert (made.temperature, made.ce_weight) == (float(row["kd_temperature"]), 1)
                sequences = params.texts[params.data[made.data].training_text].sequences
                assert made.steps == int(row["epochs"]) * sequences / 16


def test_what_is_left_out_is_in_the_tables():
    for file, key in LEFT_OUT:
        assert any(key in row or row.get("model") == key for row in printed(file)), (file, key)
    files = ("bitdistiller_llama2.csv", "bitdistiller_cost.csv")
    assert {row["method"] for file in files for row in printed(file)} >= OTHER_PEOPLE


# --- the files themselves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_the_same_pipeline_with_valid_parameters(profile, capsys):
    folder, params = ROOT / "profiles" / profile, PARAMS[profile]
    assert (folder / "dvc.yaml").resolve() == ROOT / "dvc.yaml"
    assert (folder / params.root).resolve() == ROOT and (ROOT / params.weights).exists()
    for name in params.studies:
        assert study_params(load_study(name, ROOT / "studies"), params)
    check(params.model_copy(update={"root": str(ROOT)}))  # offline, with an empty cache
    notes = capsys.readouterr().out
    moving = {str(model) for model in models(params) if not model.pinned}
    assert moving == {line.split(":")[0] for line in notes.splitlines() if "nickrosh" not in line}


def models(params):
    names = {part.model for part in (*params.quantizers.values(), *params.baselines.values())}
    names |= {data.teacher for data in params.data.values()} | {t.generator for t in params.instruction_text.values()}
    return {model_repository(name) for name in names}


def test_every_study_has_its_runs_at_paper_scale():
    assert set(study_names(ROOT / "studies")) == {name for params in PARAMS.values() for name in params.studies}


@pytest.mark.parametrize("profile", PROFILES)
def test_hyper_parameters_are_the_published_ones(profile):
    params = PARAMS[profile]
    for name, run in params.runs.items():
        text = params.texts[params.data[run.data].training_text]
        assert (run.weight_decay, run.batch_tokens) == (0, 16 * text.length)
        small = params.quantizers[run.quantizer].model.startswith("TinyLlama/")
        assert run.learning_rate == (2e-5 if small else 8e-6), name
    assert all(task.source == "hub" and task.shots == 0 for task in params.evaluation.tasks.values())
    assert set(params.evaluation.tasks) == {"piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge"}
    assert params.evaluation.perplexity["wikitext-2"].window == 2048


# --- shrunken copies, end to end --------------------------------------------------------------------------------

GROUPS = {128: 32, 64: 16, 32: 8}
LENGTH = 512  # the prompts of model cards are long in the tiny tokenizer, whose tokens are nearly letters


def shrink(values: dict) -> dict:
    """The same entries with fewer steps, shorter text and smaller groups; every name stays."""
    for text in (*values["training_text"].values(), *values["student_text"].values()):
        counts = {key: min(text[key], 4) for key in ("sequences", "corpus_sequences")}
        text.update(counts | {"length": LENGTH, "batch_size": 4})
    for text in values["instruction_text"].values():
        text.update(sequences=4, length=LENGTH, batch_tokens=4096)
    for quantizer in values["quantizers"].values():
        quantizer.update(group_size=GROUPS[quantizer["group_size"]], calibration_tokens=64, calibration_length=32)
    for run in values["runs"].values():
        run.update(steps=2, batch_tokens=2 * LENGTH, micro_batches=1, checkpoint_every=2, validate_every=2)
        run.update(validation_sequences=2)
    values["evaluation"]["perplexity"]["wikitext-2"].update(window=64, max_tokens=400)
    values["evaluation"]["tasks"] = {"piqa": {"limit": 4, "shots": 0, "source": "hub"}}
    values["evaluation"]["batch_tokens"] = 1024
    return values | {
        "root": str(ROOT),
        "threads": 1,
        "accelerate": None,
        "defaults": {},
        "peers": {},
        "reasoning": {},
        "studies": {},
    }


def parquet(records: list[dict]) -> bytes:
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(pa.Table.from_pylist(records), sink)
    return sink.getvalue().to_pybytes()


@pytest.fixture(scope="module")
def small_hub(tmp_path_factory):
    """A hub cache with every repository that the profiles name: tiny models with heads of two sizes, and tiny data."""
    cache, folder = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("models")
    for params in PARAMS.values():
        for model in models(params):
            path = folder / model.id.replace("/", "--")
            if path.exists():
                continue
            tiny.make_model(path, vocabulary=400 if "3.2" in model.id else None)
            config = json.loads((path / "config.json").read_text()) | {"max_position_embeddings": 2 * LENGTH}
            (path / "config.json").write_text(json.dumps(config))
            cache_repository(cache, model.id, folder_files(path), model.revision or COMMIT)
    shutil.rmtree(folder)
    paragraphs = [" ".join(tiny.sentences(4, seed=seed)) for seed in range(60)]
    text = parquet([{"text": paragraph} for paragraph in paragraphs])
    words = [sentence[:60] for sentence in tiny.sentences(400, seed=99)]
    asked = [{"instruction": word, "input": "", "output": word, "query": word, "response": word} for word in words]
    for name, files in {
        "wikitext-2": {f"wikitext-2-raw-v1/{split}-0.parquet": text for split in ("train", "validation", "test")},
        "alpaca": {"alpaca.json": json.dumps(asked).encode()},
        "evol-instruct-code": {"evol.json": json.dumps(asked).encode()},
        "metamathqa": {"metamath.json": json.dumps(asked).encode()},
        "piqa": {f"piqa_{split}.parquet": parquet(rows("piqa")[:20]) for split in ("train", "validation")},
    }.items():
        cache_repository(cache, hub_data()[name].id, files, hub_data()[name].revision or COMMIT, kind="dataset")
    return cache


@pytest.fixture
def small_world(small_hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(small_hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "cache_dir", lambda: tmp_path / "prepared")
    monkeypatch.setattr(tasks, "folder", lambda: tmp_path / "benchmarks")
    monkeypatch.chdir(tmp_path)


def write_small(profile: str) -> None:
    text = (ROOT / "profiles" / profile / "params.yaml").read_text()
    values = json.loads(json.dumps(yaml.safe_load(text), default=str))  # anchors become values of their own
    Path("params.yaml").write_text(yaml.safe_dump(shrink(values)))


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.usefixtures("small_world")
@pytest.mark.parametrize("profile", PROFILES)
def test_a_shrunken_profile_passes_the_check_offline(profile):
    write_small(profile)
    notes = run("check")
    assert ("not pinned" in notes) == (profile in ("paper-code", "paper-math"))
    assert all(COMMIT in line for line in notes.splitlines())  # the commit that is in the cache


def one_run_a_model() -> list[tuple[str, str]]:
    found = {}
    for profile, params in PARAMS.items():
        for name, made in params.runs.items():
            found.setdefault(params.quantizers[made.quantizer].model, (profile, name))
    return [
        *found.values(),
        ("paper", "1b-int2-by-7b"),
        ("paper", "1b-int2-reads-student"),
        ("paper-3b", "3b-int2-by-7b"),
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("small_world")
@pytest.mark.parametrize("profile, name", one_run_a_model())
def test_a_run_of_every_model_goes_through_the_pipeline(profile, name):
    write_small(profile)
    params = load_params()
    made = params.runs[name]
    text = params.data[made.data].training_text
    if text in params.student_text:
        run("clip", params.student_text[text].generator)
    for stage in (
        ("text", text),
        ("teacher", made.data),
        ("clip", made.quantizer),
        ("train", name),
        ("evaluate", name),
    ):
        run(*stage)
    scores = json.loads(Path("results", "runs", name, "scores.json").read_text())
    assert {score["task"] for score in scores["scores"]} == {"wikitext-2", "piqa"}
    model = model_repository(params.quantizers[made.quantizer].model)
    assert f"{model.id} at commit {model.revision or COMMIT}" in scores["origin"]
    record = json.loads(Path("results", "text", f"{text}.json").read_text())
    assert record["sequences"] == 4 and all("commit " in origin for origin in record["text"]["origins"])
    assert "Salesforce/wikitext on the Hugging Face hub, commit b08601e" in scores["data"]["wikitext-2"]["origins"][0]
