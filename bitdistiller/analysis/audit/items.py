"""Item counts of benchmarks: the project's registry, and a file of the user's own on top of it."""

import re
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bitdistiller.errors import UserError


class Benchmark(BaseModel):
    """Number of items behind a score; a column belongs to it if its name contains an alias as whole words."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    items: int = Field(ge=2)
    counted: bool = True
    aliases: tuple[str, ...]
    source: str


Items = tuple[Benchmark, ...]


@lru_cache(maxsize=4096)
def normal(name: str) -> str:
    """A column name in lower case, with single underscores."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


@cache
def registry() -> Items:
    """The benchmarks of ``items.yaml``."""
    return _parse(yaml.safe_load(resources.files(__package__).joinpath("items.yaml").read_text()), "items.yaml")


def load_items(path: Path) -> Items:
    """The registry with the entries of a YAML file before it: ``name: 500``, or the fields of ``Benchmark``.

    Raises:
        UserError: no such file, no YAML mapping, or an entry without a number of items.
    """
    if not path.is_file():
        raise UserError(f"the item counts file {path} does not exist")
    try:
        table = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UserError(f"the item counts file {path} is not YAML") from None
    if not isinstance(table, dict):
        raise UserError(f"the item counts file {path} has to map names to numbers of items, like `my_task: 500`")
    return (*_parse(table, str(path)), *registry())


@lru_cache(maxsize=4096)
def find_benchmark(column: str, items: Items) -> Benchmark | None:
    """The benchmark whose alias ``column`` contains; the longest alias wins, then the first entry."""
    name = f"_{normal(column)}_"
    found = [(len(alias), bench) for bench in items for alias in bench.aliases if f"_{normal(alias)}_" in name]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _parse(table: dict, file: str) -> Items:
    benchmarks = []
    for name, entry in table.items():
        fields = entry if isinstance(entry, dict) else {"items": entry}
        try:
            benchmarks.append(Benchmark(**{"name": str(name), "aliases": (str(name),), "source": file} | fields))
        except (ValidationError, TypeError):
            raise UserError(f"{file}: {name!r} needs a whole number of items of at least 2, not {entry!r}") from None
    return tuple(benchmarks)
