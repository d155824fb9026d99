"""Folders of every container: whole or not there at all, and never in the place of anything but an earlier export."""

import json
from pathlib import Path

import pytest
import torch

from bitdistiller.errors import UserError
from bitdistiller.export import folder as folder_module
from bitdistiller.export import run as run_module
from bitdistiller.export.affine import export_gptq
from bitdistiller.export.native import export_native
from bitdistiller.quant import make_format
from tests.export.students import WEIGHTS


@pytest.mark.parametrize("error", [OSError("No space left"), RuntimeError("a bug")])
def test_a_failed_write_leaves_what_was_there(error, loaded, tmp_path, monkeypatch):
    def failing(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise error

    fmt = make_format("int-asym", bits=2, group_size=32)
    for earlier in (False, True):
        if earlier:
            export_native(loaded.model, loaded.tokenizer, fmt, tmp_path / "out")
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with monkeypatch.context() as patch:
            patch.setattr(folder_module, "save_file", failing)
            with pytest.raises(UserError if isinstance(error, OSError) else RuntimeError, match=str(error)):
                export_native(loaded.model, loaded.tokenizer, fmt, tmp_path / "out")
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        assert bool(before) == earlier and len(list(tmp_path.iterdir())) == earlier


def test_exports_are_replaced_and_nothing_else_is(loaded, tmp_path):
    fmt = make_format("int-asym", bits=2, group_size=32)
    export_native(loaded.model, loaded.tokenizer, fmt, tmp_path / "out")
    (tmp_path / "out" / "stale.safetensors").write_bytes(b"")
    export_native(loaded.model, loaded.tokenizer, make_format("binary", bits=1, group_size=32), tmp_path / "out")
    assert not (tmp_path / "out" / "stale.safetensors").exists() and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    (tmp_path / "file").write_text("text")
    for marker in ("", "{}", "[1]"):
        (tmp_path / "mine" / "bitdistiller.json").write_text(marker)
        for taken in ("mine", "file"):
            with pytest.raises(UserError, match="holds no exported checkpoint"):
                export_native(loaded.model, loaded.tokenizer, fmt, tmp_path / taken)
    assert (tmp_path / "mine" / "config.json").read_text() == "{}"


def test_quantized_models_of_others_are_not_replaced(wide, tmp_path):
    model, tokenizer = wide
    downloaded = {"config.json": '{"quantization_config": {"quant_method": "gptq"}}', WEIGHTS: "weights"}
    for name, text in downloaded.items():
        (tmp_path / name).write_text(text)
    fmt = make_format("int-asym", bits=2, group_size=32)
    for export in (export_native, export_gptq):
        with pytest.raises(UserError, match=r"bitdistiller\.json is missing"):
            export(model, tokenizer, fmt, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == downloaded


@pytest.mark.parametrize("container", run_module.CONTAINERS)
def test_every_container_says_what_it_is_and_replaces_itself(container, wide, tmp_path):
    if container == "compressed-tensors":
        pytest.importorskip("compressed_tensors")
    model, tokenizer = wide
    for bits in (2, 4):
        fmt = make_format("int-asym", bits=bits, group_size=32)
        run_module.CONTAINERS[container](model, tokenizer, fmt, tmp_path / "out", torch.float16)
        marker = json.loads((tmp_path / "out" / "bitdistiller.json").read_text())
        assert set(marker.pop("versions")) == {"bitdistiller", "torch", "transformers"}
        assert marker == {"container": container, "format": "int-asym", "bits": bits, "group_size": 32}


def test_the_working_directory_is_not_replaced_and_links_are_followed(loaded, tmp_path, monkeypatch):
    fmt = make_format("int-asym", bits=2, group_size=32)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out in (".", "..", "../here", "/"):
        with pytest.raises(UserError, match="working directory or holds it and cannot be replaced") as caught:
            export_native(loaded.model, loaded.tokenizer, fmt, Path(out))
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for _ in range(2):
        export_native(loaded.model, loaded.tokenizer, fmt, Path("../link"))
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / WEIGHTS).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "link", "real"]
