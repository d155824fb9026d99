"""The parts of the project that no other test imports do not lie: documents, make targets, pins, packaging, CI."""

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.documents import DOCUMENTS, blocks, commands

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [Requirement(text) for text in sum(PROJECT["optional-dependencies"].values(), PROJECT["dependencies"])]
# Pages of the documentation that are written when it is built (docs/pages.py).
GENERATED = ("claims.md", "reference/params.md", "reference/commands.md")
# Assembled from halves, so that this file is not the first to break its own rule.
REGISTRIES = ["pypi" + ".org", "python" + "hosted", "download." + "pytorch", "anaconda" + ".org", "conda" + "-forge"]
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:work|tmp|root|home/\w+|Users/\w+)/")
TEXT_FILES = {"", ".cff", ".cfg", ".j2", ".json", ".lock", ".md", ".py", ".toml", ".txt", ".yaml", ".yml"}


def make(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Run make as a person would, free of what a surrounding `make test` hands down."""
    inherited = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "SCALE", "PYTHON"}
    environment = {key: value for key, value in os.environ.items() if key not in inherited}
    return subprocess.run(["make", *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def committed_files() -> list[Path]:
    """Files that are in git or would be after `git add .`."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def pins() -> dict[str, str]:
    """Version of each package in constraints.txt."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_make_target_in_a_document_exists(document):
    text = (ROOT / document).read_text()
    spans = re.findall(r"`make ([a-z][a-z-]*)", text)
    typed = [word for words in commands(document) if words[0] == "make" for word in words[1:] if "=" not in word]
    assert spans or typed or document not in ("README.md", "CONTRIBUTING.md")
    assert set(spans) | set(typed) <= make_targets()


def test_make_help_names_every_target():
    shown = make("help").stdout
    assert set(re.findall(r"^  make (\S+) +\w", shown, re.MULTILINE)) == make_targets()


@pytest.mark.parametrize("target", sorted(make_targets()))
@pytest.mark.parametrize("scale", ["micro", "laptop", "paper"])
def test_make_targets_can_be_rehearsed(target, scale):
    """`make -n` runs nothing, and every file that a recipe names is there."""
    done = make("-n", target, f"SCALE={scale}")
    assert done.returncode == 0, done.stderr
    for path in re.findall(r"(?<=\s)[\w./-]+\.(?:py|yaml)\b", done.stdout):
        assert (ROOT / path).exists(), path


def test_unknown_scale_is_one_sentence():
    done = make("reproduce", "SCALE=huge")
    assert done.returncode != 0
    assert "SCALE=huge is not a scale; choose micro, laptop or paper" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_old_python_is_refused_with_its_version(tmp_path):
    old = tmp_path / "python-old"
    old.write_text("#!/bin/sh\n[ $1 = -V ] && echo Python 3.9.1 || exit 1\n")
    old.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    done = make("test", f"PYTHON={old}", cwd=tmp_path)
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr
    assert "Python 3.9.1" in done.stderr
    assert not (tmp_path / ".venv").exists()


def command_tree() -> dict[str, set[str]]:
    """Options of each `bitdistiller` subcommand."""
    from typer.main import get_command

    from bitdistiller.cli import app

    always = {"-h", "--help"}
    return {
        name: always.union(*(set(option.opts) | set(option.secondary_opts) for option in command.params))
        for name, command in get_command(app).commands.items()
    }


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_bitdistiller_command_in_a_document_exists(document):
    tree = command_tree()
    for _, subcommand, *rest in (words for words in commands(document) if words[0] == "bitdistiller"):
        assert subcommand in tree | {"--help": set()}, subcommand
        flags = {word.split("=")[0] for word in rest if word.startswith("-")}
        assert flags <= tree.get(subcommand, set()), f"bitdistiller {subcommand} {flags}"


def test_every_stage_calls_an_existing_subcommand():
    tree = command_tree()
    pipelines = [path for path in committed_files() if path.name == "dvc.yaml"]
    assert pipelines
    for path in pipelines:
        for name, stage in yaml.safe_load(path.read_text())["stages"].items():
            program, subcommand, *_ = stage.get("do", stage)["cmd"].split()
            assert (program, subcommand in tree) == ("bitdistiller", True), f"{path}: {name}"


def tree_entries(block: str) -> Iterator[tuple[str, str]]:
    """Path and phrase of each line of a file tree, drawn with spaces or with box characters."""
    parents: list[tuple[int, str]] = []
    for line in filter(str.strip, block.splitlines()):
        bare = re.sub(r"[│├└─|]", " ", line)
        depth = len(bare) - len(bare.lstrip())
        name, _, phrase = bare.strip().partition(" ")
        while parents and parents[-1][0] >= depth:
            parents.pop()
        yield "/".join([*(folder for _, folder in parents), name.rstrip("/")]), phrase.strip()
        if name.endswith("/"):
            parents.append((depth, name.rstrip("/")))


def test_a_file_tree_is_read_as_a_person_reads_it():
    expected = [("a", "first"), ("a/b", "second"), ("a/b/c.py", "third"), ("a/d.py", "fourth"), ("e", "fifth")]
    spaces = "a/   first\n  b/   second\n    c.py  third\n  d.py  fourth\ne  fifth\n"
    boxes = "a/ first\n├── b/ second\n│   └── c.py third\n└── d.py fourth\ne fifth\n"
    assert list(tree_entries(spaces)) == list(tree_entries(boxes)) == expected


def test_every_path_in_the_readme_tree_exists_and_has_a_phrase():
    texts = [block.text for block in blocks("README.md")]
    trees = [text for text in texts if re.search(r"^\W*bitdistiller/\s", text, re.MULTILINE)]
    assert len(trees) == 1
    entries = list(tree_entries(trees[0]))
    assert len(entries) > 10
    assert [path for path, _ in entries if not (ROOT / path).exists()] == []
    assert [path for path, phrase in entries if not phrase] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_relative_link_leads_somewhere(document):
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", (ROOT / document).read_text())
    paths = [(ROOT / document).parent / target for target in targets]
    generated = {ROOT / "docs" / path for path in GENERATED}
    assert [str(path) for path in paths if not path.exists() and path.resolve() not in generated] == []


def needed_packages() -> set[str]:
    """Every package that `pip install -e .[dev]` brings to this platform, from the installed metadata.

    What torch adds for an accelerator is left out: the pins are for the CPU build, which has no such dependencies.
    """
    queue = list(REQUIREMENTS)
    found: set[str] = set()
    visited: set[tuple[str, frozenset[str]]] = set()
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        if (name, frozenset(requirement.extras)) in visited or re.match(r"nvidia-|cuda-|triton", name):
            continue
        visited.add((name, frozenset(requirement.extras)))
        found.add(name)
        try:
            children = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for child in map(Requirement, children):
            extras = ["", *requirement.extras]
            if child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in extras):
                queue.append(child)
    return found


def test_every_dependency_is_pinned():
    assert needed_packages() - set(pins()) == set()


@pytest.mark.skipif(sys.version_info[:2] != (3, 11) or sys.platform != "linux", reason="other platforms need fewer")
def test_every_pin_is_needed():
    assert set(pins()) - needed_packages() == set()


def test_pins_satisfy_the_declared_bounds():
    for requirement in REQUIREMENTS:
        assert {bound.operator for bound in requirement.specifier} == {">="}, f"{requirement} is not a lower bound"
        assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)]), str(requirement)


def test_constraints_fit_any_machine():
    text = (ROOT / "constraints.txt").read_text()
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    assert re.fullmatch(r"(?:[a-z0-9-]+==[A-Za-z0-9.]+\n?)+", body)  # no local versions, paths, addresses or options
    assert not re.search(r"^(?:nvidia|cuda|triton)", body, re.MULTILINE)
    assert pins()["torch"] == "2.13.0"


def test_every_import_is_declared():
    """A room may import what the extra of its own name declares; the rest has to be there after a plain install."""
    distributions = metadata.packages_distributions()
    missing = {}
    for path in (ROOT / "bitdistiller").rglob("*.py"):
        extra = PROJECT["optional-dependencies"].get(path.relative_to(ROOT / "bitdistiller").parts[0], [])
        declared = {canonicalize_name(Requirement(text).name) for text in (*PROJECT["dependencies"], *extra)}
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"bitdistiller", "studies"}:
                if not declared & {canonicalize_name(name) for name in distributions.get(top, [])}:
                    missing[str(path.relative_to(ROOT))] = top
    assert missing == {}


def test_every_package_folder_is_a_package():
    """Without ``__init__.py`` a folder is not found by the packaging and missing from an installed copy."""
    folders = {path.parent for path in (ROOT / "bitdistiller").rglob("*.py")}
    assert ROOT / "bitdistiller" in folders
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_entry_points_can_be_called():
    assert PROJECT["scripts"]
    for target in PROJECT["scripts"].values():
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_annotated_shapes_are_checked():
    """The import hook of conftest.py is on; if not, install the dev extra (`pip install -e '.[dev]'`)."""
    import torch
    from jaxtyping import TypeCheckError

    from bitdistiller.quant import make_format

    with pytest.raises(TypeCheckError, match="quantize"):
        make_format("int-asym", bits=2, group_size=4).quantize(torch.ones(2, 3, 4))


def test_continuous_integration_runs_what_people_run():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.search(r"^(exec )?make test\b(?!-)", script.read_text(), re.MULTILINE)
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert "make test" in [step.get("run") for step in steps]
    versions = [step["with"]["python-version"] for step in steps if "setup-python" in step.get("uses", "")]
    assert versions
    assert all(f">={version}" == PROJECT["requires-python"] for version in versions)


def test_no_registry_and_no_machine_path_is_named():
    offences = []
    for path in committed_files():
        if path.suffix not in TEXT_FILES or path == Path(__file__):
            continue
        text = path.read_text()
        offences += [f"{path.relative_to(ROOT)}: {name}" for name in REGISTRIES if name in text]
        offences += [f"{path.relative_to(ROOT)}: {found.group()}" for found in MACHINE_PATH.finditer(text)]
    assert offences == []


def test_licence_and_citation_agree_with_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()
    assert (citation["license"], citation["version"]) == (PROJECT["license"], PROJECT["version"])
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert [(bool(paper["authors"]), bool(paper["title"])) for paper in citation["references"]] == [(True, True)] * 2
