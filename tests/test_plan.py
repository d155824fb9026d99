"""Plans: counted shapes, work and memory beside independent counts of the same, and what a user meets."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPTBigCodeConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
)
from typer.testing import CliRunner

from bitdistiller.cli import app
from bitdistiller.config import Params, load_params
from bitdistiller.distill.chunked import chunked_loss
from bitdistiller.distill.objective import Objective
from bitdistiller.errors import UserError
from bitdistiller.models import load_model
from bitdistiller.models.micro import MICRO_MODELS
from bitdistiller.plan import items, memory, report
from bitdistiller.plan.architecture import architecture, find_config, shape_of
from bitdistiller.plan.calibrate import Calibration, process_cost
from bitdistiller.plan.machine import A100, EFFICIENCY, H100, Host
from bitdistiller.plan.stages import Setup, stages
from bitdistiller.plan.work import PASSES, Work, backward, distillation_loss, forward, head, passes, update, writing
from bitdistiller.quant import make_format, quantizable, quantize_model
from tests import tiny

ROOT = Path(__file__).parent.parent
SHARED = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1, "num_hidden_layers": 3}
WIDE = {**SHARED, "hidden_size": 96, "num_attention_heads": 6}
CONFIGS = {
    "llama": LlamaConfig(**WIDE, num_key_value_heads=2, intermediate_size=256),
    "tied": LlamaConfig(**WIDE, num_key_value_heads=6, intermediate_size=256, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**WIDE, num_key_value_heads=2, intermediate_size=256),
    "mistral": MistralConfig(**WIDE, num_key_value_heads=2, intermediate_size=256),
    "gemma": GemmaConfig(**WIDE, num_key_value_heads=2, intermediate_size=256, head_dim=24),
    "gpt_neox": GPTNeoXConfig(**WIDE, intermediate_size=384),
    "opt": OPTConfig(**WIDE, ffn_dim=384, word_embed_proj_dim=96, dropout=0.0),
    "gpt_bigcode": GPTBigCodeConfig(
        vocab_size=64, n_embd=96, n_layer=3, n_head=6, n_inner=384, n_positions=128, bos_token_id=0, eos_token_id=0,
        attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0,
    ),
}  # fmt: skip
EACH = Calibration(
    machine="a machine", threads=1, rates=[(1, 1e9), (512, 1e11)], each=dict.fromkeys(PASSES, 1e-9), runtime=5e8
)


@pytest.fixture
def calibrated(monkeypatch) -> None:
    """A machine that was measured already."""
    monkeypatch.setattr(report, "calibration", lambda threads, folder: EACH)


def built(kind: str):
    """A real model of a tiny shape, and that shape as a plan sees it."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind])
    return model.train(), shape_of(CONFIGS[kind], kind)


# --- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
def test_counts_are_those_of_the_real_model(kind):
    model, shape = built(kind)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.quantizable == sum(layer.weight.numel() for layer in quantizable(model).values())
    assert shape.head == model.get_output_embeddings().weight.numel()
    assert (shape.layers, shape.hidden, shape.heads) == (3, 96, 6)


@pytest.mark.parametrize("name", MICRO_MODELS)
def test_counts_are_those_of_the_micro_models(name):
    model = load_model(name).model
    assert architecture(name).parameters == sum(p.numel() for p in model.parameters())
    assert architecture(name).quantizable == sum(layer.weight.numel() for layer in quantizable(model).values())


# Sums that the model cards on the hub give for their safetensors files.
PUBLISHED = {
    "smollm2-135m": 134_515_008,
    "TinyLlama/TinyLlama_v1.1": 1_100_048_384,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "openlm-research/open_llama_3b_v2": 3_426_473_600,
    "princeton-nlp/Sheared-LLaMA-1.3B": 1_345_423_360,
    "princeton-nlp/Sheared-LLaMA-2.7B": 2_701_560_320,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_shipped_shapes_have_the_published_number_of_parameters(name):
    assert architecture(name).parameters == PUBLISHED[name]


def test_every_shipped_shape_has_a_source_and_can_be_counted():
    table = yaml.safe_load((ROOT / "bitdistiller/plan/architectures.yaml").read_text())
    for entry in table:
        assert entry["source"]
        for name in entry["names"]:
            assert architecture(name).quantizable > 0


def test_a_revision_does_not_change_the_shape():
    name = "TinyLlama/TinyLlama_v1.1"
    assert replace(architecture(f"{name}@abc123"), name=name) == architecture(name)


def test_a_folder_is_read_where_there_is_one(tiny_model):
    assert find_config(str(tiny_model)).hidden_size == 32
    assert architecture(str(tiny_model)).layers == 2


def test_clipping_leaves_queries_and_keys_alone():
    model, shape = built("llama")
    left = [layer.weight.numel() for name, layer in quantizable(model).items() if name.endswith(("q_proj", "k_proj"))]
    assert shape.unclipped == sum(left)


# --- work -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gemma", "gpt_neox", "opt"])
def test_flops_are_those_that_torch_counts(kind):
    model, shape = built(kind)
    model.set_attn_implementation("eager")
    quantize_model(model, make_format("int-asym", bits=2, group_size=32))
    ids = torch.randint(2, 60, (2, 16))
    with FlopCounterMode(display=False) as there:
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    assert forward(shape, 2, 16, attention="plain").flops == there.get_total_flops()
    with FlopCounterMode(display=False) as back:
        states.sum().backward()
    assert backward(shape, 2, 16, "plain").flops == back.get_total_flops()


def test_flops_of_the_loss_are_those_that_torch_counts():
    _, shape = built("llama")
    hidden, weight = torch.randn(40, 96, requires_grad=True), torch.randn(64, 96, requires_grad=True)
    labels = torch.randint(64, (40,))
    with FlopCounterMode(display=False) as counted:
        chunked_loss(
            hidden, weight, torch.randn(40, 96), torch.randn(64, 96), labels, Objective("cakld", 0.7)
        ).backward()
    reductions = 2 * 2 * 40 * 64  # torch counts CAKLD's two dot products over the vocabulary, which are passes here
    assert distillation_loss(shape, shape, 40).flops == counted.get_total_flops() - reductions


def test_writing_costs_a_prefill_and_one_pass_a_token():
    _, shape = built("llama")
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]).eval()
    model.set_attn_implementation("eager")
    model.generation_config.eos_token_id = None
    ids = torch.randint(2, 60, (4, 6))
    with FlopCounterMode(display=False) as counted:
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False)
    assert writing(shape, 4, 6, 10).flops == pytest.approx(counted.get_total_flops(), rel=0.1)


def test_work_adds_and_multiplies():
    _, shape = built("llama")
    one, other = forward(shape, 1, 8), update(shape)
    assert ((one + other) * 3).flops == pytest.approx(3 * one.flops)
    assert ((one + other) * 3).passes["updated parameters"] == 3 * shape.parameters
    assert one + Work() == one


def test_every_pass_that_work_names_is_known():
    _, shape = built("llama")
    work = forward(shape, 1, 8) + backward(shape, 1, 8, "fused") + writing(shape, 1, 8, 8) + head(shape, 8)
    assert set(work.passes) <= set(PASSES)


# --- memory -----------------------------------------------------------------------------------------------------------


def saved_bytes(model, ids: torch.Tensor) -> int:
    """Bytes of distinct storages that autograd keeps of a forward pass in mixed precision, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        states = model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    assert states.last_hidden_state.requires_grad
    return sum(found.values())


@pytest.mark.parametrize(
    "kind, tolerance", [("llama", 0.05), ("qwen2", 0.05), ("mistral", 0.05), ("gemma", 0.05), ("gpt_neox", 0.25)]
)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_activations_are_what_autograd_keeps(kind, tolerance, attention):
    model, shape = built(kind)
    model.set_attn_implementation(attention)
    ids = torch.randint(2, 60, (4, 64))
    scores = memory.score_bytes(shape, 4, 64) if attention == "eager" else 0
    expected = ids.numel() * memory.activation_bytes(shape) + scores + 2 * shape.quantizable
    assert expected == pytest.approx(saved_bytes(model, ids), rel=tolerance)


def test_state_is_that_of_a_model_after_a_step():
    model, shape = built("tied")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(input_ids=torch.zeros(1, 4, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    held = memory.training(shape, shape, 1, 1, 2, plain=False, checkpointing=False).parts
    assert held["masters"] == sum(p.nbytes for p in model.parameters())
    assert held["gradients"] == sum(p.grad.nbytes for p in model.parameters())
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert held["optimizer"] == sum(moment.nbytes for moment in moments)


def test_full_sharding_divides_the_state_and_ddp_does_not():
    shape = architecture("meta-llama/Llama-2-13b-hf")
    one, ddp, full = (
        memory.training(shape, shape, 1, 512, 2, False, True, devices, sharding)
        for devices, sharding in ((1, "none"), (8, "none"), (8, "full"))
    )
    assert full.parts["optimizer"] == one.parts["optimizer"] / 8
    assert full.parts["gradients"] == one.parts["gradients"] / 8
    assert ddp.parts["gradients"] == 2 * one.parts["gradients"]
    assert full.total < A100.memory < one.total < ddp.total


def test_checkpointing_keeps_fewer_activations():
    shape = architecture("TinyLlama/TinyLlama_v1.1")
    held = [memory.training(shape, shape, 8, 512, 1, False, again) for again in (False, True)]
    assert held[1].parts.get("activations", 0) < held[0].parts["activations"] / 4
    assert held[1].total < held[0].total


# --- machines ---------------------------------------------------------------------------------------------------------


def test_a_measured_machine_is_read_between_its_sizes():
    host = Host(((1, 1e9), (100, 1e11)), {}, 0)
    assert host.rate(1, 500, 500) == pytest.approx(1e9)
    assert host.rate(500, 500, 10) == pytest.approx(1e10)
    assert host.rate(500, 500, 500) == pytest.approx(1e11)


def test_a_gpu_takes_the_longer_of_products_and_weights():
    many, single = (A100.seconds(Work({(rows, 4096, 4096): 1000})) for rows in (4096, 1))
    assert many == pytest.approx(1000 * 2 * 4096**3 / (312e12 * 0.4), rel=1e-6)
    assert single == pytest.approx(1000 * 2 * (4096**2 + 8192) / (2.039e12 * 0.8), rel=1e-6)


def test_a_gpu_waits_for_launches():
    assert A100.seconds(passes(layer_calls=1000)) > 0.1
    assert H100.seconds(passes(layer_calls=1000)) == A100.seconds(passes(layer_calls=1000))


@pytest.mark.slow
def test_this_machine_can_be_measured_and_is_measured_once(tmp_path):
    from bitdistiller.plan.calibrate import calibration

    found = calibration(1, tmp_path)
    assert set(found.each) == set(PASSES)
    assert min(found.each.values()) >= 0
    assert all(rate > 1e8 for _, rate in found.rates)
    assert calibration(1, tmp_path) == found
    assert len(list(tmp_path.iterdir())) == 1


def test_the_cost_of_a_process_is_its_own():
    hold = "x = bytearray(60_000_000); x[::4096] = b'1' * len(x[::4096])"
    small, large = (process_cost([sys.executable, "-c", code]) for code in ("pass", hold))
    assert 50e6 < large.peak_bytes - small.peak_bytes < 80e6
    assert process_cost([sys.executable, "-c", "raise SystemExit(3)"]).status == 3


# --- stages -----------------------------------------------------------------------------------------------------------


def dvc_stages(folder: Path) -> Counter:
    """Names of all stages of a dvc.yaml, its `foreach` resolved by hand."""
    params = yaml.safe_load((folder / "params.yaml").read_text())
    found: Counter = Counter()
    for kind, stage in yaml.safe_load((folder / "dvc.yaml").read_text())["stages"].items():
        if "foreach" not in stage:
            found[kind] += 1
            continue
        for key in params[stage["foreach"].removeprefix("${").removesuffix("}")]:
            found[f"{kind}@{key}"] += 1
    return found


@pytest.mark.parametrize("folder", [".", "profiles/laptop", "profiles/paper"])
@pytest.mark.parametrize("setup", [Setup(host=True), Setup(4, "full")])
def test_a_plan_lists_every_stage_once(folder, setup):
    scale = ROOT / folder
    planned = stages(load_params(scale / "params.yaml"), scale / "results", setup)
    assert Counter(stage.name for stage in planned) == dvc_stages(scale)
    assert all(stage.work.passes["stages"] == 1 for stage in planned)
    assert all(stage.work.flops > 0 for stage in planned if stage.kind in ("teacher", "train", "evaluate"))


def test_a_text_that_exists_says_how_much_of_it_is_padding(tmp_path, tiny_model, tiny_text):
    params = Params.model_validate(tiny.make_params(tiny_model, tiny_text))
    whole = next(s for s in stages(params, tmp_path, Setup()) if s.kind == "train")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "own.json").write_text(json.dumps({"tokens": 24 * 16, "sequences": 24}))
    half = next(s for s in stages(params, tmp_path, Setup()) if s.kind == "train")
    assert half.work.passes["loss logits"] == pytest.approx(whole.work.passes["loss logits"] / 2)
    assert half.work.passes["activations"] == whole.work.passes["activations"]


def test_devices_share_a_step_and_no_more_than_its_sequences(tiny_model, tiny_text):
    params = Params.model_validate(tiny.make_params(tiny_model, tiny_text))
    one, two = (next(s for s in stages(params, Path("none"), Setup(count)) if s.kind == "train") for count in (1, 2))
    assert two.work.passes["activations"] < 0.6 * one.work.passes["activations"]
    assert two.exchanged > one.exchanged == 0
    with pytest.raises(UserError, match="run student has 4 sequences a step, too few for 8 devices"):
        stages(params, Path("none"), Setup(8))


@pytest.mark.slow
def test_benchmarks_have_as_many_items_and_characters_as_the_plan_assumes():
    from bitdistiller.data.text import TEXT_SETS, load_text
    from bitdistiller.evaluate.benchmarks import rows

    for name, known in items.BENCHMARKS.items():
        assert len(rows(name)) == known.count, name
    endings = [sum(map(len, row["endings"])) / 4 + 1 for row in rows("hellaswag")]
    assert sum(endings) / len(endings) == pytest.approx(items.BENCHMARKS["hellaswag"].choice, rel=0.01)
    goals = [len(f"Question: {row['goal']}\nAnswer:") for row in rows("piqa")]
    assert sum(goals) / len(goals) == pytest.approx(items.BENCHMARKS["piqa"].context, rel=0.01)
    for name in TEXT_SETS:
        for split in items.SPLITS:
            assert sum(len(d.text) for d in load_text([name], split)) == items.text_characters([name], split)


def test_tokens_grow_with_the_vocabulary():
    assert items.token_characters(4096) == pytest.approx(3.38)
    assert items.token_characters(4096) < items.token_characters(32000) < items.token_characters(128256)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("calibrated")
def test_the_command_prints_a_plan_and_writes_it(tmp_path, monkeypatch, tiny_model, tiny_text):
    monkeypatch.chdir(tmp_path)
    scale = tmp_path / "profiles" / "own"
    scale.mkdir(parents=True)
    (scale / "params.yaml").write_text(yaml.safe_dump(tiny.make_params(tiny_model, tiny_text)))
    options = ["--profile", "own", "--json", "plan.json", "--devices", "2", "--sharding", "full"]
    done = CliRunner().invoke(app, ["plan", *options], catch_exceptions=False)
    assert done.exit_code == 0
    assert "tiny scale (profiles/own): 1 runs" in done.stdout
    assert "what is cached is not known" in done.stdout
    written = json.loads(Path("plan.json").read_text())
    trained = next(stage for stage in written["stages"] if stage["stage"] == "train@student")
    assert (trained["devices"], trained["tokens"]) == (2, 6 * 128)
    assert set(trained["seconds"]) == {"A100", "H100", "this machine"}
    assert trained["device_memory_bytes"]["optimizer"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "profiles"]


@pytest.mark.usefixtures("calibrated")
def test_what_does_not_fit_is_named_with_a_way_out(tmp_path, tiny_text):
    params = tiny.make_params("meta-llama/Llama-2-13b-hf@main", tiny_text)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    shown = {
        setup: "\n".join(report.lines(report.make_plan(tmp_path / "params.yaml", setup, 0.4, tmp_path)))
        for setup in (Setup(), Setup(4, "full"))
    }
    assert "train@student needs" in shown[Setup()] and "train@student needs" not in shown[Setup(4, "full")]
    for text in shown.values():
        assert "evaluate@student needs" in text and "it runs on one device, so it needs a larger one" in text


def test_stages_that_are_up_to_date_are_found(tmp_path):
    """In a process of its own, as DVC warns of what its libraries will change."""
    commands = {
        "text-a": {"cmd": "echo a > a", "outs": ["a"]},
        "text-b": {"cmd": "cp a b", "deps": ["a"], "outs": ["b"]},
    }
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": commands}))
    for command in ("dvc init -q --no-scm", "dvc repro -q text-a"):
        subprocess.run(command.split(), cwd=tmp_path, check=True)
    asked = "from bitdistiller.plan.report import _cached; names, why = _cached(); print(sorted(names), why)"
    done = subprocess.run([sys.executable, "-c", asked], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "['text-a'] []\n"
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--profile", "nowhere"], "there is no profile 'nowhere'"),
        (["--params", "none.yaml"], "does not exist"),
        (["--sharding", "half"], "--sharding is none or full, not 'half'"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence):
    done = CliRunner().invoke(app, ["plan", *arguments])
    assert isinstance(done.exception, UserError)
    assert sentence in str(done.exception)
    assert "\n" not in str(done.exception)


def test_the_default_efficiency_is_the_documented_one():
    from typer.main import get_command

    option = next(param for param in get_command(app).commands["plan"].params if param.name == "efficiency")
    assert option.default == EFFICIENCY == A100.efficiency
    assert f"Its default, {EFFICIENCY}," in (ROOT / "docs/howto/plan.md").read_text()


def test_a_model_of_unknown_shape_is_one_sentence():
    with pytest.raises(UserError, match=r"^the shape of no-such/model is not known here [^\n]+$"):
        architecture("no-such/model")


def test_documents_show_what_was_measured():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from plan import table
    finally:
        sys.path.pop(0)
    rows = json.loads((ROOT / "benchmarks/plan.json").read_text())["stages"]
    assert (ROOT / "benchmarks/plan.md").read_text() == table(rows)
    assert {row["model"] for row in rows} == {"micro-1m", "micro-3m", "micro-6m", "smollm2-135m"}
