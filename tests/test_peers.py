"""Other people's quantizers: what is asked of them, what is believed of their answers; and, slow, they themselves."""

import re
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from bitdistiller.check import check, check_environment
from bitdistiller.cli import app
from bitdistiller.config import Params, PeerParams, load_params
from bitdistiller.data.text import load_text
from bitdistiller.distill.clipping import calibration_inputs
from bitdistiller.errors import UserError
from bitdistiller.models import load_model
from bitdistiller.peers import load_peer, peers_python, quantize_with_peer, run
from bitdistiller.quant import make_format, quantizable, quantize_model
from tests import tiny
from tests.test_config import write
from tests.test_project import make

ROOT = Path(__file__).parent.parent
GROUP = 8

# A quantizer with the command line of runner.py: plain rounding, each group's range in equal steps.
FAKE = """
import json, sys
from safetensors.numpy import load_file, save_file

method, model, ids, out, *options = sys.argv[1:]
options = dict(zip(options[::2], map(int, options[1::2])))
print(method, options, load_file(ids)["input_ids"].shape)
weights = load_file(model + "/model.safetensors")
for name, w in weights.items():
    if "_proj" in name:
        groups = w.reshape(-1, options["--group-size"])
        low, high = groups.min(1, keepdims=True), groups.max(1, keepdims=True)
        step = (high - low) / (2 ** options["--bits"] - 1)
        weights[name] = (((groups - low) / step).round() * step + low).reshape(w.shape)
save_file(weights, out, {"versions": json.dumps({"fake": "1.0"})})
"""


def raw_params(model: Path, text: Path, **peer) -> dict:
    """The tiny world with one peer; keyword arguments change it."""
    raw = tiny.make_params(model, text)
    raw["quantizers"]["plain"] = {**raw["quantizers"]["int2"], "clip": "none", "group_size": GROUP}
    raw["peers"] = {"other": {"method": "gptq", "quantizer": "plain", **peer}}
    return raw


@pytest.fixture
def raw(tiny_model, tiny_text):
    return raw_params(tiny_model, tiny_text)


@pytest.fixture
def params(raw):
    return Params.model_validate(raw)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The fake in place of the runner, and this interpreter in place of the peers'."""
    program = tmp_path / "fake.py"
    program.write_text(FAKE)
    monkeypatch.setattr(run, "RUNNER", program)
    return Path(sys.executable)


def shell(path: Path, commands: str) -> Path:
    """An interpreter that does something else."""
    path.write_text(f"#!/bin/sh\n{commands}\n")
    path.chmod(0o755)
    return path


def test_a_peer_s_answer_becomes_a_model_folder(tiny_model, tiny_text, tmp_path, fake, monkeypatch):
    raw = raw_params(tiny_model, tiny_text, method="auto-round", iterations=7)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["peer", "other", "--python", str(fake), "--params", str(write(tmp_path, raw))])
    assert done.exit_code == 0, done.exception
    assert re.fullmatch(r"other: 22,016 weights of 4\.25 bits in \d+ s\n", done.output)
    artifacts = tmp_path / "artifacts"
    assert {path.name for path in (artifacts / "peers").iterdir()} == {"other", "other.log"}
    asked = {"--bits": 2, "--group-size": GROUP, "--threads": 1, "--iterations": 7}
    assert (artifacts / "peers" / "other.log").read_text() == f"auto-round {asked} (2, 32)\n"

    loaded, original = load_peer("other", Params.model_validate(raw), artifacts), load_model(str(tiny_model))
    assert loaded.origin == "quantized by fake 1.0"
    assert loaded.tokenizer.get_vocab() == original.tokenizer.get_vocab()
    low_bit = {f"{name}.weight" for name in quantizable(original.model)}
    before = dict(original.model.named_parameters())
    for name, after in loaded.model.named_parameters():
        if name in low_bit:
            assert max(len(group.unique()) for group in after.reshape(-1, GROUP)) == 4
            assert 0 < (after - before[name]).norm() < before[name].norm()
        else:
            assert torch.equal(after, before[name])


def test_what_was_made_with_other_parameters_is_not_scored(raw, params, tmp_path, fake):
    with pytest.raises(UserError, match="does not exist; make it first with `bitdistiller peer other`"):
        load_peer("other", params, tmp_path)
    quantize_with_peer("other", params, tmp_path, fake)
    for change in ({"bits": 3}, {"calibration_tokens": 96}):
        raw["quantizers"]["plain"] |= change
        with pytest.raises(UserError, match="made with other parameters; make it anew"):
            load_peer("other", Params.model_validate(raw), tmp_path)
    with pytest.raises(UserError, match=r"peers in params\.yaml has no entry 'nobody'; it has other"):
        quantize_with_peer("nobody", params, tmp_path, fake)


def found_in(model) -> dict[str, torch.Tensor]:
    """A flawless answer: parameters of ``model`` with rounded layers, which ``model`` keeps as they are."""
    fmt = make_format("int-asym", bits=2, group_size=GROUP)
    found = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return found | {f"{name}.weight": fmt.round(layer.weight.detach()) for name, layer in quantizable(model).items()}


WEIGHT, NORM = "model.layers.1.mlp.up_proj.weight", "model.norm.weight"


def finer(found):
    found[WEIGHT][3, 2 * GROUP : 3 * GROUP] = torch.linspace(0, 1, 5).repeat(2)[:GROUP]


@pytest.mark.parametrize("spoil, words", [
    (lambda f: f.pop(NORM), f"other parameters than the one it was made from, first {NORM}"),
    (lambda f: f.update({"scale": torch.ones(1)}), "other parameters than the one it was made from, first scale"),
    (lambda f: f.update({WEIGHT: f[WEIGHT].T}), rf"{WEIGHT} became \(32, 72\) by quantization; it was \(72, 32\)"),
    (lambda f: f[NORM].mul_(1.001), f"{NORM} is no weight of a quantized layer, and changed"),
    (lambda f: f[WEIGHT][0, 0].fill_(float("nan")), f"{WEIGHT} holds NaN or Inf"),
    (finer, f"{WEIGHT} has a group of 8 weights with 5 distinct values, which is more than 2 bits can tell apart"),
])  # fmt: skip
def test_weights_that_are_not_what_they_should_be_are_refused(params, tiny_model, spoil, words):
    quantizer, model = params.quantizers["plain"], load_model(str(tiny_model)).model
    found = found_in(model)
    assert run.take_weights(load_model(str(tiny_model)).model, found, quantizer) == 22016
    spoil(found)
    with pytest.raises(UserError, match=words):
        run.take_weights(model, found, quantizer)


@pytest.mark.parametrize("edit, words", [
    (lambda r: r["peers"]["other"].update(quantizer="none"), r"peers\.other\.quantizer names 'none'"),
    (lambda r: r["peers"]["other"].update(method="awq"), r"peers\.other\.method: Input should be 'gptq'"),
    (lambda r: r["peers"]["other"].update(iterations=3), "iterations go with method auto-round"),
    (lambda r: r["peers"]["other"].update(method="auto-round"), "auto-round, and it needs them"),
    (lambda r: r["peers"]["other"].update(quantizer="int2"), "quantizer int2, of format int-asym with clip asymmetric"),
    (lambda r: r["quantizers"]["plain"].update(format="nf-asym"), "format nf-asym with clip none; a peer needs"),
    (lambda r: r["peers"].update(full=r["peers"]["other"]), "full stands in two of runs, baselines, ptq and peers"),
])  # fmt: skip
def test_peers_that_cannot_be_are_refused(raw, tmp_path, edit, words):
    assert "other" in load_params(write(tmp_path, raw)).scored
    edit(raw)
    with pytest.raises(UserError, match=words):
        load_params(write(tmp_path, raw))


def test_a_missing_environment_is_found_before_anything_runs(raw, tmp_path):
    params = Params.model_validate(raw | {"root": str(tmp_path)})
    check(params)
    words = r"\.venv-peers/bin/python does not exist; make it with `make peers`"
    for ask in (lambda: check_environment(params), lambda: quantize_with_peer("other", params, tmp_path)):
        with pytest.raises(UserError, match=words):
            ask()
    check_environment(Params.model_validate(raw | {"root": str(tmp_path), "peers": {}}))
    peers_python(params).parent.mkdir(parents=True)
    peers_python(params).symlink_to(sys.executable)
    check_environment(params)
    assert run.require_python(peers_python(params)) == peers_python(params)  # a link out of it is another environment


def test_groups_that_do_not_fill_rows_and_missing_text_are_refused(raw, tmp_path):
    raw["quantizers"]["plain"]["calibration_tokens"] = 10**6
    with pytest.raises(UserError, match="fewer than calibration_tokens = 1000000"):
        quantize_with_peer("other", Params.model_validate(raw), tmp_path, Path(sys.executable))
    raw["quantizers"]["plain"]["group_size"] = 16
    with pytest.raises(UserError, match="down_proj has rows of 72 weights, which groups of 16 do not fill"):
        quantize_with_peer("other", Params.model_validate(raw), tmp_path, Path(sys.executable))
    assert not any((tmp_path / "peers").iterdir())


def test_a_failure_elsewhere_is_one_sentence_and_keeps_what_there_is(params, tmp_path):
    kept = tmp_path / "peers" / "other" / "kept"
    kept.parent.mkdir(parents=True)
    kept.touch()
    broken = shell(tmp_path / "python", "echo loading; echo 'ValueError: too small' >&2; exit 1")
    with pytest.raises(UserError, match=r"gptq failed in .*: ValueError: too small \(all it said is in .*other\.log\)"):
        quantize_with_peer("other", params, tmp_path, broken)
    assert (tmp_path / "peers" / "other.log").read_text() == "loading\nValueError: too small\n"
    with pytest.raises(UserError, match="it said nothing"):
        quantize_with_peer("other", params, tmp_path, shell(broken, "exit 3"))
    broken.write_text("neither a program nor a script")
    with pytest.raises(UserError, match="cannot be started"):
        quantize_with_peer("other", params, tmp_path, broken)
    assert kept.exists() and {path.name for path in kept.parent.parent.iterdir()} == {"other", "other.log"}


def test_a_package_that_is_not_there_is_named(params, tmp_path):
    """The real runner, in an environment that has torch but no quantizers: this one."""
    with pytest.raises(UserError, match=r"cannot run gptq \(missing: gptqmodel\); .* with `make peers`"):
        quantize_with_peer("other", params, tmp_path, Path(sys.executable))


def test_calibration_sequences_are_those_of_the_clipping_search(params, tiny_model):
    quantizer, loaded = params.quantizers["plain"], load_model(str(tiny_model))
    name = "model.layers.0.self_attn.v_proj"
    seen = calibration_inputs(loaded.model, loaded.tokenizer, {name: quantizable(loaded.model)[name]}, quantizer)[name]
    ids = run.calibration_ids(loaded.tokenizer, quantizer)
    with torch.no_grad():
        embedded = loaded.model.model.layers[0].input_layernorm(loaded.model.get_input_embeddings()(ids))
    assert torch.equal(seen, embedded.flatten(0, 1)[: quantizer.calibration_tokens])


@pytest.mark.parametrize("method, expected", [("gptq", 2 + 18 / 8), ("auto-round", 2 + 18 / 8), ("hqq", 2 + 32 / 8)])
def test_bits_count_scales_and_zero_points(params, method, expected):
    peer = PeerParams(method=method, quantizer="plain", iterations=1 if method == "auto-round" else None)
    assert run.bits_per_weight(peer, params.quantizers["plain"]) == expected
    own = make_format("int-asym", bits=2, group_size=GROUP).bits_per_weight()
    assert (own == expected) == (method != "hqq")


def test_the_peers_environment_is_pinned_and_computes_with_our_torch():
    body = [line for line in (ROOT / "constraints-peers.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[A-Za-z0-9.]+", line) for line in body)
    ours = (ROOT / "constraints.txt").read_text().splitlines()
    assert {line for line in body if re.match(r"(torch|transformers|safetensors)==", line)} <= set(ours)
    recipe = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "gptqmodel" in line)
    for package in recipe.split("$<")[1].split():
        assert any(line.startswith(f"{package}==") for line in body), package


@pytest.mark.parametrize("scale, folder", [("micro", "."), ("laptop", "profiles/laptop"), ("paper", "profiles/paper")])
def test_scales_with_peers_make_their_environment_first(scale, folder):
    asked = ".venv-peers" in make("--dry-run", "--always-make", "reproduce", f"SCALE={scale}").stdout
    assert asked == bool(load_params(ROOT / folder / "params.yaml").peers)


def nll(model, ids) -> float:
    with torch.no_grad():
        return model(input_ids=ids, labels=ids).loss.item()


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".venv-peers").exists(), reason="the peers' environment is not there (`make peers`)")
@pytest.mark.parametrize("peer", [
    {"method": "hqq"}, {"method": "gptq"}, {"method": "auto-round", "iterations": 10},
], ids=lambda peer: peer["method"])  # fmt: skip
def test_real_quantizers_beat_rounding(peer, tiny_model, tiny_text, tmp_path):
    raw = raw_params(tiny_model, tiny_text, **peer)
    raw["quantizers"]["plain"] |= {
        "model": "micro-1m", "text": ["encyclopedia"], "group_size": 32,
        "calibration_tokens": 4096, "calibration_length": 128,
    }  # fmt: skip
    params = Params.model_validate(raw | {"root": str(ROOT)})
    record = quantize_with_peer("other", params, tmp_path)
    quantizer, rounded = params.quantizers["plain"], load_model("micro-1m")
    assert record.versions["torch"].startswith("2.13.0")
    ids = run.packed_blocks(rounded.tokenizer, load_text(quantizer.text, "test"), 128)[:32]
    full = nll(rounded.model, ids)
    quantize_model(rounded.model, make_format("int-asym", bits=2, group_size=32))
    assert full < nll(load_peer("other", params, tmp_path).model, ids) < nll(rounded.model, ids)
