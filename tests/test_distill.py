"""Teacher cache, gamma, data and the training run itself: resuming, divergence, refused mismatches."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from statistics import mean

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from bitdistiller.config import Params
from bitdistiller.data.generate import TrainingSequence, make_text, padded, read_sequences, statistics
from bitdistiller.distill.clipping import apply_clipping, search_model
from bitdistiller.distill.losses import cakld
from bitdistiller.distill.student import load_student, prepare_student
from bitdistiller.distill.teacher import (
    IGNORED,
    cache_teacher,
    confidence,
    last_hidden_states,
    next_tokens,
    read_teacher,
    write_states,
)
from bitdistiller.distill.trainer import _trainer, make_objective, train
from bitdistiller.errors import UserError
from bitdistiller.models import load_model
from tests import tiny


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_model, tiny_text):
    """Artifacts folder with data, teacher cache and clipping bounds of the tiny world."""
    folder = tmp_path_factory.mktemp("world") / "artifacts"
    params = tiny.params(tiny_model, tiny_text)
    tiny.make_teacher(params, folder)
    search_model(params.quantizers["int2"], folder / "clip" / "int2.safetensors")
    return folder


def fresh(world, tmp_path):
    """A copy of the world's inputs in which one test may train."""
    folder = tmp_path / "artifacts"
    folder.mkdir(parents=True)
    for name in ("text", "teacher", "clip"):
        (folder / name).symlink_to(world / name)
    return folder


def weights(folder):
    return load_file(folder / "students" / "student" / "model.safetensors")


def test_data_is_seeded_and_says_what_it_is(tiny_model, tiny_text, tmp_path):
    section = tiny.params(tiny_model, tiny_text).training_text["own"]
    records = [make_text(section, load_model(section.generator), tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    assert records[0] == records[1] and (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    changed = section.model_copy(update={"seed": 1})
    other = make_text(changed, load_model(section.generator), tmp_path / "c.jsonl")
    assert other["sha256"] != records[0]["sha256"]
    sequences = read_sequences(tmp_path / "a.jsonl")
    assert len(sequences) == 24 == records[0]["sequences"]
    generated, corpus = sequences[:12], sequences[12:]
    assert all(s.prompt_length == 8 and len(s.input_ids) <= 32 and s.input_ids[0] == 0 for s in generated)
    assert all(s.prompt_length == len(s.input_ids) == 32 for s in corpus)
    assert records[0]["generator_origin"] and records[0]["text"]["documents"] > 100


def test_more_prompts_than_documents_are_cut_from_further_inside(tiny_model, tiny_text, tmp_path):
    section = (
        tiny.params(tiny_model, tiny_text)
        .training_text["own"]
        .model_copy(update={"sequences": 10**6, "corpus_sequences": 0})
    )
    with pytest.raises(UserError, match="of 1000000 prompts"):
        make_text(section, load_model(section.generator), tmp_path / "x.jsonl")
    assert not (tmp_path / "x.jsonl").exists()


def test_interrupted_generation_goes_on_to_the_same_sequences(tiny_model, tiny_text, tmp_path, monkeypatch):
    from bitdistiller.data import generate as module

    section = tiny.params(tiny_model, tiny_text).training_text["own"]
    whole = make_text(section, load_model(section.generator), tmp_path / "whole.jsonl")
    working, calls = module._continue, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return working(*arguments)

    monkeypatch.setattr(module, "_continue", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_text(section, load_model(section.generator), tmp_path / "killed.jsonl")
    (partial,) = tmp_path.glob("killed*.partial")
    partial.write_text(partial.read_text() + '{"document": "torn')
    assert make_text(section, load_model(section.generator), tmp_path / "killed.jsonl") == whole
    assert len(calls) == 3 and not partial.exists()  # one batch before, one interrupted, one after


def test_statistics_see_loops():
    varied = TrainingSequence("d", 1, [0, *range(2, 40)], "")
    loop = TrainingSequence("d", 1, [0, *[5, 6] * 20], "")
    assert statistics([varied], 0)["loops"] == 0 and statistics([varied, loop], 0)["loops"] == 0.5
    assert statistics([varied], 0)["distinct_2"] == 1 and statistics([loop], 0)["distinct_2"] < 0.1


def test_labels_end_with_their_sequence():
    ids, mask = padded([[0, 5, 6], [0, 7]], pad=1, length=4)
    assert next_tokens(ids, mask).tolist() == [[5, 6, IGNORED, IGNORED], [7, IGNORED, IGNORED, IGNORED]]


def test_confidence_is_measured_in_four_ways(tiny_model):
    model = load_model(str(tiny_model)).model
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(2, 30, (length,), generator=generator).tolist() for length in (8, 5, 3)]
    ids, mask = padded(rows, pad=1, length=8)
    states = last_hidden_states(model, ids, mask).float()
    label, largest = {True: [], False: []}, {True: [], False: []}  # by whether the position predicts a real token
    for row, attention in zip(ids, mask, strict=True):
        with torch.no_grad():
            probabilities = model(row[None], attention_mask=attention[None].long()).logits[0].softmax(-1)
        for place in range(7):
            label[bool(attention[place + 1])].append(probabilities[place, row[place + 1]].item())
            largest[bool(attention[place + 1])].append(probabilities[place].max().item())
    assert len(label[True]) == 7 + 4 + 2
    expected = {
        "label": mean(label[True]),
        "max": mean(largest[True]),
        "label-with-padding": mean(label[True] + label[False]),
        "max-with-padding": mean(largest[True] + largest[False]),
    }
    found = confidence(states, model.get_output_embeddings().weight, ids, mask)
    assert found == pytest.approx(expected, rel=0.03)  # the states are computed under bf16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_are_an_ordinary_file_that_a_killed_call_goes_on_with(tiny_model, tmp_path, monkeypatch, dtype):
    model = load_model(str(tiny_model)).model
    ids = torch.randint(2, 30, (7, 16), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    monkeypatch.setattr("bitdistiller.distill.teacher._BATCH_TOKENS", 32)  # batches of two sequences
    parts = [last_hidden_states(model, ids[start : start + 2], mask[start : start + 2]) for start in (0, 2, 4, 6)]
    save_file({"states": torch.cat(parts).to(dtype)}, tmp_path / "expected")
    write_states(model, ids, mask, dtype, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    assert whole == (tmp_path / "expected").read_bytes()
    seen = []

    def counting(network, rows, real):
        seen.append(len(rows))
        return last_hidden_states(network, rows, real)

    monkeypatch.setattr("bitdistiller.distill.teacher.last_hidden_states", counting)
    for kept, batches in ((0, 4), (30, 4), (len(whole) // 2, 3), (len(whole) - 1, 1), (len(whole), 1)):
        (tmp_path / "killed").write_bytes(whole[:kept])
        seen.clear()
        write_states(model, ids, mask, dtype, tmp_path / "killed")
        assert (tmp_path / "killed").read_bytes() == whole and len(seen) == batches, kept


def test_a_teacher_in_16_bits_says_nearly_the_same(tiny_model, world, tmp_path):
    text, name = world / "text" / "own.jsonl", str(tiny_model)
    exact = cache_teacher(name, 32, text, tmp_path / "fp32")
    halved = cache_teacher(name, 32, text, tmp_path / "bf16", torch.bfloat16)
    states = [load_file(tmp_path / kind / "states.safetensors")["states"].float() for kind in ("fp32", "bf16")]
    mask = load_file(tmp_path / "fp32" / "data.safetensors")["mask"]
    assert not torch.equal(*states) and halved.gammas == pytest.approx(exact.gammas, rel=0.05)
    torch.testing.assert_close(states[0][mask], states[1][mask], rtol=0.1, atol=0.1)


def test_confidence_of_a_file_is_that_of_the_tensor(tiny_model, tmp_path, monkeypatch):
    """Whatever the number of tokens whose logits are held at a time."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 30, (70, 9), generator=generator)
    states, head = torch.randn(70, 9, 4, generator=generator), torch.randn(30, 4, generator=generator)
    mask = torch.rand(70, 9, generator=generator) > 0.3
    mask[:, :2] = True
    save_file({"states": states}, tmp_path / "states")
    whole = confidence(states, head, ids, mask)
    with safe_open(tmp_path / "states", framework="pt") as file:
        assert confidence(file.get_slice("states"), head, ids, mask) == whole
        for chunk in (1, 64 * 8, 70 * 8):
            monkeypatch.setattr("bitdistiller.distill.teacher._CHUNK", chunk)
            assert confidence(file.get_slice("states"), head, ids, mask) == pytest.approx(whole)


def test_clipping_leaves_queries_and_keys_alone(tiny_model, tiny_text, world):
    bounds = load_file(world / "clip" / "int2.safetensors")
    names = {key.rsplit(".", 1)[0] for key in bounds}
    assert len(names) == 10 and not any(n.endswith(("q_proj", "k_proj")) for n in names)
    clipped, original = load_model(str(tiny_model)).model, load_model(str(tiny_model)).model
    apply_clipping(clipped, world / "clip" / "int2.safetensors", tiny.params(tiny_model, tiny_text).quantizers["int2"])
    pairs = zip(clipped.model.layers, original.model.layers, strict=True)
    changed = [(not torch.equal(a.mlp.up_proj.weight, b.mlp.up_proj.weight),
                not torch.equal(a.self_attn.q_proj.weight, b.self_attn.q_proj.weight)) for a, b in pairs]  # fmt: skip
    assert changed == [(True, False)] * 2


def test_first_loss_is_cakld_of_the_clipped_student(tiny_model, tiny_text, world, tmp_path):
    params = tiny.params(tiny_model, tiny_text)
    teacher = read_teacher(world / "teacher" / "self")
    run = params.runs["student"]
    student = prepare_student(params.quantizers["int2"], world / "clip" / "int2.safetensors")
    trainer = _trainer(run, params, student, teacher, make_objective(run, teacher), tmp_path)
    batch = [trainer.train_dataset[i] for i in range(3)]
    inputs = {key: torch.stack([example[key] for example in batch]) for key in batch[0]}
    real = inputs["labels"] != IGNORED
    loss = trainer.compute_loss(student.model, inputs, num_items_in_batch=real.sum())
    with torch.no_grad():
        full = load_model(str(tiny_model)).model
        logits = [m(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits for m in (student.model, full)]
    assert loss.item() == pytest.approx(cakld(*logits, gamma=teacher.gammas["label"], mask=real).item(), rel=0.05)


def test_training_lowers_the_loss_and_records_it(tiny_model, tiny_text, world, tmp_path):
    folder = fresh(world, tmp_path)
    record = train("student", tiny.params(tiny_model, tiny_text, steps=30, learning_rate=5e-3), folder)
    losses = [point.loss for point in record.curve if point.loss is not None]
    assert len(losses) == record.steps == 30 and sum(losses[-5:]) < 0.8 * sum(losses[:5])
    validated = [point.step for point in record.curve if point.validation_perplexity is not None]
    assert validated[0] == 0 and validated[-1] == 30
    for point in record.curve:
        of_sequences, perplexity = point.validation_nll, point.validation_perplexity
        assert (of_sequences is None) == (perplexity is None)
        if perplexity:
            assert len(of_sequences) == 4 and mean(of_sequences) == pytest.approx(math.log(perplexity), rel=1e-3)
    assert record.cost.seconds > 0 and record.environment.versions["torch"].startswith("2.")
    saved = LlamaForCausalLM.from_pretrained(folder / "students" / "student")
    assert saved.dtype == torch.float32


def test_same_seed_same_weights_other_seed_other_weights(tiny_model, tiny_text, world, tmp_path):
    found = []
    for index, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(index)
        folder.mkdir()
        folder = fresh(world, folder)
        train("student", tiny.params(tiny_model, tiny_text, seed=seed), folder)
        found.append(weights(folder))
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    assert not all(torch.equal(found[0][key], found[2][key]) for key in found[0])


def test_killed_run_resumes_to_the_same_weights(tiny_model, tiny_text, world, tmp_path):
    """kill -9 after the second checkpoint, the same command again: bit-equal to an undisturbed run."""
    (tmp_path / "whole").mkdir()
    whole = fresh(world, tmp_path / "whole")
    run = {"steps": 40, "checkpoint_every": 4, "validate_every": 40}
    train("student", tiny.params(tiny_model, tiny_text, **run), whole)
    (tmp_path / "killed").mkdir()
    killed = fresh(world, tmp_path / "killed")
    (killed.parent / "params.yaml").write_text(yaml.safe_dump(tiny.make_params(tiny_model, tiny_text, **run)))
    command = [sys.executable, "-c", "from bitdistiller.cli import main; main()", "train", "student"]
    process = subprocess.Popen(command, cwd=killed.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    second = "checkpoints/student/*/checkpoint-8/complete.json"
    deadline = time.monotonic() + 120
    while not list(killed.glob(second)) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL and not (killed / "students").exists()
    done = subprocess.run(command, cwd=killed.parent, capture_output=True, text=True)
    assert done.returncode == 0 and "resuming from" in done.stdout, done.stderr
    assert all(torch.equal(value, weights(killed)[key]) for key, value in weights(whole).items())
    record = json.loads((killed.parent / "results" / "runs" / "student" / "train.json").read_text())
    assert len([p for p in record["curve"] if p["loss"] is not None]) == 40
    assert not (killed / "checkpoints" / "student").exists()


def test_checkpoints_hold_no_pickles(tiny_model, tiny_text, world, tmp_path):
    folder = fresh(world, tmp_path)
    train("student", tiny.params(tiny_model, tiny_text), folder)
    kinds = {os.path.splitext(name)[1] for _, _, names in os.walk(folder / "checkpoints") for name in names}
    assert kinds == {".safetensors", ".json"}


def test_checkpoints_of_other_parameters_are_left_alone(tiny_model, tiny_text, world, tmp_path):
    folder = fresh(world, tmp_path)
    train("student", tiny.params(tiny_model, tiny_text), folder)
    record = train("student", tiny.params(tiny_model, tiny_text, learning_rate=2e-3), folder)
    assert record.resumed_at == 0 and len(list((folder / "checkpoints" / "student").iterdir())) == 2
    assert train("student", tiny.params(tiny_model, tiny_text), folder).resumed_at == 6


@pytest.mark.parametrize("damage", ["unmarked", "json", "tensors", "one bit"])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(tiny_model, tiny_text, world, tmp_path, damage):
    folder = fresh(world, tmp_path)
    train("student", tiny.params(tiny_model, tiny_text), folder)
    expected = weights(folder)
    (newest,) = folder.glob("checkpoints/student/*/checkpoint-6")
    if damage == "unmarked":
        (newest / "complete.json").unlink()
    elif damage == "one bit":
        path = newest / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-100] ^= 1
        path.write_bytes(content)
    else:
        path = newest / {"json": "trainer_state.json", "tensors": "optimizer.safetensors"}[damage]
        path.write_bytes(path.read_bytes()[:20])
    assert train("student", tiny.params(tiny_model, tiny_text), folder).resumed_at == 4
    assert all(torch.equal(value, expected[key]) for key, value in weights(folder).items())


@pytest.mark.parametrize("factor, words", [(math.nan, "not finite"), (1e3, "exploded")])
def test_divergence_stops_with_step_loss_and_checkpoint(
    tiny_model, tiny_text, world, tmp_path, monkeypatch, factor, words
):
    from bitdistiller.distill import trainer as module

    calls = []

    def broken(*arguments):
        calls.append(1)
        total = module_chunked(*arguments)
        return total * factor if len(calls) > 6 else total  # micro-batch 7: step 4

    module_chunked = module.chunked_loss
    monkeypatch.setattr(module, "chunked_loss", broken)
    folder = fresh(world, tmp_path)
    with pytest.raises(UserError, match=rf"step 4: .*{words}.*checkpoint-2"):
        train("student", tiny.params(tiny_model, tiny_text), folder)
    assert not (folder / "students").exists()


def test_batch_that_does_not_divide_is_refused(tiny_model, tiny_text, world, tmp_path):
    with pytest.raises(UserError, match="batch_tokens = 100"):
        train("student", tiny.params(tiny_model, tiny_text, batch_tokens=100), fresh(world, tmp_path))


def test_teacher_with_another_vocabulary_is_refused(tiny_model, tiny_text, world, tmp_path):
    other = tiny.make_model(tmp_path / "other", kind="unigram")
    params = tiny.params(other, tiny_text)
    bounds = tmp_path / "clip" / "int2.safetensors"
    search_model(params.quantizers["int2"], bounds)
    (tmp_path / "teacher").symlink_to(world / "teacher")
    with pytest.raises(UserError, match="different vocabularies"):
        train("student", params, tmp_path)


def test_another_vocabulary_may_be_tried_on_request(tiny_model, tiny_text, tmp_path):
    other = tiny.make_model(tmp_path / "other", kind="unigram")
    foreign = tiny.params(other, tiny_text)
    tiny.make_teacher(foreign, tmp_path)
    params = tiny.params(tiny_model, tiny_text, allow_vocabulary_mismatch=True, steps=2)
    search_model(params.quantizers["int2"], tmp_path / "clip" / "int2.safetensors")
    assert train("student", params, tmp_path).teacher == str(other)


def test_a_constant_learning_rate_stays_after_its_warmup(tiny_model, tiny_text, world, tmp_path):
    rates = {}
    for schedule in ("constant", "cosine"):
        folder = fresh(world, tmp_path / schedule)
        train("student", tiny.params(tiny_model, tiny_text, warmup_steps=2, schedule=schedule), folder)
        (state,) = folder.glob("checkpoints/student/*/checkpoint-6/trainer_state.json")
        history = json.loads(state.read_text())["log_history"]
        rates[schedule] = [entry["learning_rate"] for entry in history if "learning_rate" in entry]
    assert rates["constant"] == pytest.approx([0.0, 5e-4, 1e-3, 1e-3, 1e-3, 1e-3])
    assert rates["cosine"][2:] == sorted(rates["cosine"][2:], reverse=True) and rates["cosine"][-1] < 5e-4


@pytest.mark.parametrize("change", [
    {"loss": "jsd"},
    {"loss": "tsld"},
    {"loss": "ce"},
    {"loss": "cakld", "temperature": 5.0, "ce_weight": 1.0},
    {"loss": "cakld", "gamma": 0.25},
    {"loss": "cakld", "gamma": "max-with-padding"},
])  # fmt: skip
def test_every_objective_trains(tiny_model, tiny_text, world, tmp_path, change):
    params = tiny.params(tiny_model, tiny_text, steps=2, **change)
    record = train("student", params, fresh(world, tmp_path))
    assert math.isfinite(record.final_loss) and (record.gamma is None) == (change["loss"] != "cakld")
    if "gamma" in change:
        measured = read_teacher(world / "teacher" / "self").gammas
        assert record.gamma == (change["gamma"] if change["gamma"] == 0.25 else measured[change["gamma"]])


def test_learned_scales_are_trained_saved_and_loaded(tiny_model, tiny_text, world, tmp_path):
    raw = tiny.make_params(tiny_model, tiny_text, steps=3)
    raw["quantizers"]["int2"] |= {"scales": "learned", "estimator": "clipped", "clip": "none"}
    params, folder = Params.model_validate(raw), fresh(world, tmp_path)
    (folder / "clip").unlink()
    search_model(params.quantizers["int2"], folder / "clip" / "int2.safetensors")
    before = prepare_student(params.quantizers["int2"], folder / "clip" / "int2.safetensors").model
    train("student", params, folder)
    after = load_student("student", params, folder).model
    name = "model.layers.0.mlp.up_proj"
    assert not torch.equal(before.get_submodule(name).scale, after.get_submodule(name).scale)
    saved = load_file(folder / "students" / "student" / "scales.safetensors")
    assert torch.equal(saved[f"{name}.scale"], after.get_submodule(name).scale)
    with pytest.raises(ValueError, match="set it so"):
        Params.model_validate(raw | {"quantizers": {"int2": raw["quantizers"]["int2"] | {"estimator": "tanh"}}})


def test_a_step_larger_than_the_data_is_refused(tiny_model, tiny_text, world, tmp_path):
    with pytest.raises(UserError, match="needs 32 sequences and data set self has 24"):
        train("student", tiny.params(tiny_model, tiny_text, batch_tokens=1024), fresh(world, tmp_path))


def test_bounds_of_another_quantizer_and_damaged_files_are_refused(tiny_model, tiny_text, world, tmp_path):
    folder = fresh(world, tmp_path)
    (folder / "clip").unlink()
    bounds = folder / "clip" / "int2.safetensors"
    other = tiny.params(tiny_model, tiny_text).quantizers["int2"].model_copy(update={"bits": 3})
    search_model(other, bounds)
    with pytest.raises(UserError, match="for another quantizer"):
        train("student", tiny.params(tiny_model, tiny_text), folder)
    bounds.write_bytes(bounds.read_bytes()[:30])
    with pytest.raises(UserError, match="clipping bounds cannot be read"):
        train("student", tiny.params(tiny_model, tiny_text), folder)


def test_sequences_longer_than_the_context_are_refused(tiny_model, tiny_text, tmp_path):
    section = tiny.params(tiny_model, tiny_text).training_text["own"].model_copy(update={"length": 200})
    with pytest.raises(UserError, match="reads at most 128 tokens, not 200"):
        make_text(section, load_model(section.generator), tmp_path / "x.jsonl")


def test_missing_inputs_are_named(tiny_model, tiny_text, tmp_path):
    with pytest.raises(UserError, match="no complete teacher cache"):
        train("student", tiny.params(tiny_model, tiny_text), tmp_path)
