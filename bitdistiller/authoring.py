"""Help for those who add to the suite: the skeleton of a study, and a scale with several seeds."""

import re
from pathlib import Path

import yaml

from bitdistiller.config import Params
from bitdistiller.errors import UserError

_SECTION = """\
studies:
  {name}:
    full: {{full precision: [FULL_RUN]}}
    runs:
      treatment: [RUN]
      control: [RUN]
"""


def new_study(name: str, folder: Path) -> tuple[Path, str]:
    """Write the skeleton of a study; returns its path and the part of ``params.yaml`` that it needs.

    Raises:
        UserError: not a name for a Python file, or a study of that name exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"a study's name is made of small letters, digits and _, not {name!r}")
    path = folder / f"{name}.py"
    if path.exists():
        raise UserError(f"{path} exists; choose another name")
    path.write_text((folder / "_skeleton.py").read_text())
    return path, _SECTION.format(name=name)


def with_seeds(raw: dict, count: int) -> dict:
    """A parameter file in which every trained or random model has ``count`` seeds, and every study reads them all.

    Args:
        raw: ``params.yaml`` as YAML reads it. The copies of run X are called X-s1, X-s2 and so on.

    Raises:
        UserError: a copy would take the name of another run.
    """
    sections = {
        "runs": raw["runs"],
        "baselines": {name: model for name, model in raw["baselines"].items() if model["weights"] == "random"},
    }
    copies: dict[str, list[str]] = {}
    grown = dict(raw)
    for section, originals in sections.items():
        grown[section] = dict(raw[section])
        for name, entry in originals.items():
            copies[name] = [name, *(f"{name}-s{extra}" for extra in range(1, count))]
            for extra, copy in enumerate(copies[name][1:], 1):
                if copy in grown[section]:
                    raise UserError(f"{section} has an entry {copy} already; rename it before adding seeds")
                grown[section][copy] = entry | {"seed": entry["seed"] + extra}
    grown["studies"] = _grow(raw["studies"], copies)
    return grown


def _grow(value, copies: dict[str, list[str]]):
    """The same tree with every run in a list followed by its copies."""
    if isinstance(value, dict):
        return {key: _grow(inner, copies) for key, inner in value.items()}
    if isinstance(value, list):
        return [name for item in value for name in copies.get(item, [item])]
    return value


def write_seeds(source: Path, count: int, folder: Path) -> Path:
    """Write a scale with ``count`` seeds into ``folder``: its ``params.yaml``, and a link to the pipeline.

    Raises:
        UserError: the source is not valid, or ``count`` is not above 1.
    """
    if count < 2:
        raise UserError(f"one seed is what {source} has; ask for 2 or more")
    raw = yaml.safe_load(source.read_text())
    raw.pop("defaults", None)
    folder.mkdir(parents=True, exist_ok=True)
    root = Path(*[".."] * len(folder.relative_to(source.parent).parts)) / raw["root"]
    grown = with_seeds(raw, count) | {"root": str(root), "scale": f"{raw['scale']}, {count} seeds"}
    Params.model_validate(grown)
    text = f"# Written by `bitdistiller seeds {count}` from {source.name}; change that file and write this one again.\n"
    (folder / "params.yaml").write_text(text + yaml.safe_dump(grown, sort_keys=False, width=120))
    if not (folder / "dvc.yaml").exists():
        (folder / "dvc.yaml").symlink_to(root / "dvc.yaml")
    return folder / "params.yaml"
