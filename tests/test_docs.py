"""Whoever follows the documents word by word gets what they say: their blocks are run, their files written, in order.

The reader's world is a copy of this repository in which budgets are tiny and the tutorial's model is a random one. What
takes long runs with the slow tests; that the tutorial's parameters and study are right is checked without training.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import yaml

from bitdistiller.analysis.study import load_study, run_study, study_params
from bitdistiller.check import check
from bitdistiller.config import Params
from bitdistiller.launch import VARIABLE
from bitdistiller.warm import WarmServer
from tests import tiny
from tests.documents import DOCUMENTS, ROOT, Block, blocks, insert
from tests.synthetic import write_study
from tests.test_project import GENERATED, committed_files

TUTORIAL = "docs/tutorial.md"
BUDGETS = {
    "group_size": 16, "sequences": 16, "length": 32, "prompt_length": 8, "batch_size": 8, "calibration_tokens": 64,
    "calibration_length": 32, "steps": 2, "batch_tokens": 128, "warmup_steps": 1, "checkpoint_every": 2,
    "validate_every": 2, "validation_sequences": 4, "window": 32, "max_tokens": 500, "limit": 8,
}  # fmt: skip


def shrunk(params: str, text: Path) -> str:
    """A parameter file with tiny budgets and one text."""
    for key, value in BUDGETS.items():
        params = re.sub(rf"\b{key}: \d+", f"{key}: {value}", params)
    return re.sub(r"\btext: \[.+?\]", f"text: [{text}]", params)


class Reader:
    """Somebody who does what documents say, block by block, in a copy of the repository."""

    def __init__(self, root: Path, environment: dict[str, str]):
        self.root, self.environment = root, environment

    def follow(self, document: str) -> None:
        """Run the blocks of a document from the root of the repository."""
        folder, names = self.root, {}
        for block in blocks(document):
            if block.reason:
                continue
            if block.title:
                self.write(block)
            elif block.language == "bash":
                folder = self.run(block, folder)
            elif block.language == "python":
                with in_folder(folder):
                    exec(compile(block.text, str(block), "exec"), names)

    def write(self, block: Block) -> None:
        path = self.root / block.title
        path.write_text(insert(block.text, path.read_text()) if block.language == "yaml" else block.text)

    def run(self, block: Block, folder: Path) -> Path:
        """Run a block in bash, every command of which has to succeed; returns the folder that it ends in."""
        ends_in = self.root / "ends-in"
        script = f'{block.text}\npwd > "{ends_in}"\n'
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", script],
            cwd=folder,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return Path(ends_in.read_text().strip())


@contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def copy_repository(folder: Path) -> Path:
    """The files of the repository under git, with an environment that make finds filled."""
    for path in committed_files():
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy, follow_symlinks=False)
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(Path(shutil.which("bitdistiller")).parent)
    (folder / ".venv" / ".installed").touch()
    git = partial(subprocess.run, cwd=folder, check=True, capture_output=True)
    git(["git", "init", "--quiet"])
    git(["git", "add", "."])
    git(["git", "-c", "user.name=reader", "-c", "user.email=reader@localhost", "commit", "--quiet", "-m", "clone"])
    return folder


def environment() -> dict[str, str]:
    """The variables of this process without what a surrounding `make test` hands down."""
    inherited = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "SCALE", "SEEDS", "PYTHON", "PYTEST_ADDOPTS"}
    kept = {key: value for key, value in os.environ.items() if key not in inherited}
    return kept | {"PYTHONPATH": str(ROOT), "HYPOTHESIS_PROFILE": "default"}


@pytest.fixture(scope="module")
def warm(tmp_path_factory) -> Iterator[dict[str, str]]:
    """An environment in which commands start warm, where that is possible: the same commands, without their imports."""
    with WarmServer(tmp_path_factory.mktemp("warm") / "log") as server:
        yield environment() | ({VARIABLE: server.address} if server.wait() is None else {})


@pytest.fixture(scope="module")
def after_tutorial(tmp_path_factory, tiny_text, warm) -> Reader:
    """A reader who has followed the tutorial."""
    root = copy_repository(tmp_path_factory.mktemp("reader"))
    model = tiny.make_model(tmp_path_factory.mktemp("model"), inner=64)  # whole groups, which packed checkpoints need
    params = root / "docs" / "tutorial-params.yaml"
    params.write_text(shrunk(params.read_text(), tiny_text).replace("micro-1m", str(model)))
    reader = Reader(root, warm)
    reader.follow(TUTORIAL)
    return reader


# --- without training -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_can_be_run_or_says_why_not(document):
    for block in blocks(document):
        assert block.language in ("bash", "python", "yaml", ""), f"{block} is neither run nor said to be"
        if block.language == "bash":
            done = subprocess.run(["bash", "-n", "-c", block.text], capture_output=True, text=True)
            assert done.returncode == 0, f"{block}: {done.stderr}"
        elif block.language == "python":
            compile(block.text, str(block), "exec")
        elif block.language == "yaml":
            assert block.title, f"{block} goes into no file"


def test_every_document_is_followed():
    """A document whose blocks are to be run is one that a test below follows."""
    runnable = {doc for doc in DOCUMENTS if any(b.language in ("bash", "python") and not b.reason for b in blocks(doc))}
    assert runnable == {"README.md", TUTORIAL, *HOW_TO}


def test_a_block_and_its_reason_are_read(monkeypatch, tmp_path):
    monkeypatch.setattr("tests.documents.ROOT", tmp_path)
    fence = "```"
    (tmp_path / "a.md").write_text(
        f"text\n{fence}bash\nls\n{fence}\n<!-- not run: too long -->\n{fence}bash\nsleep 9\n{fence}\n"
        f'{fence}yaml title="b.yaml"\na: 1\n{fence}\n'
    )
    found = [(b.line, b.language, b.title, b.reason, b.text) for b in blocks("a.md")]
    assert found == [
        (2, "bash", "", "", "ls\n"),
        (6, "bash", "", "too long", "sleep 9\n"),
        (9, "yaml", "b.yaml", "", "a: 1\n"),
    ]
    (tmp_path / "a.md").write_text(f"{fence}bash\nls\n")
    with pytest.raises(ValueError, match=r"a\.md:1: a fence that is never closed"):
        list(blocks("a.md"))


def test_entries_are_added_below_their_keys():
    assert insert("b:\n  y: 2\na:\n  w: 3\n", "a: {}\nb:\n  x: 1\n") == "a:\n  w: 3\nb:\n  y: 2\n  x: 1\n"
    with pytest.raises(ValueError, match="no key c"):
        insert("c:\n  x: 1\n", "a: {}\n")


@pytest.fixture
def tutorial_params(tmp_path) -> Params:
    """The parameters that the tutorial ends with, and in a folder of studies the one that it writes."""
    (tmp_path / "studies").mkdir()
    (tmp_path / "reports" / "published").mkdir(parents=True)
    shutil.copy(ROOT / "studies" / "bit_scaling.py", tmp_path / "studies")
    text = (ROOT / "docs" / "tutorial-params.yaml").read_text()
    for block in blocks(TUTORIAL):
        if block.title.startswith("studies/"):
            (tmp_path / block.title).write_text(block.text)
        elif block.title:
            text = insert(block.text, text)
    return Params.model_validate(yaml.safe_load(text) | {"root": str(tmp_path)})


def test_the_tutorial_s_parameters_are_those_of_the_micro_scale(tutorial_params):
    """Only names are its own, so that what it says of the one is true of the other."""
    micro = Params.model_validate(yaml.safe_load((ROOT / "params.yaml").read_text()))
    assert tutorial_params.quantizers["int2"] == micro.quantizers["1m-int2"]
    own = tutorial_params.runs["int2"].model_copy(update={"quantizer": "1m-int2", "data": "self-1m"})
    assert own == micro.runs["1m-int2"]
    assert tutorial_params.training_text["own"] == micro.training_text["by-1m"]
    assert tutorial_params.evaluation == micro.evaluation


@pytest.mark.parametrize(
    ("perplexity", "accuracy", "outcomes"),
    [
        (38.0, 0.5, ["supported", "supported"]),
        (46.0, 0.4, ["contradicted", "contradicted"]),
        (42.0, 0.52, ["undecided", "undecided"]),
    ],
)
def test_the_tutorial_s_study_can_end_either_way(tutorial_params, tmp_path, perplexity, accuracy, outcomes):
    check(tutorial_params)
    study = load_study("learned_scales", tmp_path / "studies")
    truth = {"learned scales": {"perplexity": perplexity, "accuracy": accuracy}}
    write_study(tmp_path / "results", tutorial_params, study_params(study, tutorial_params), truth)
    report = run_study("learned_scales", tutorial_params, tmp_path / "results")
    assert [claim.verdict.outcome for claim in report.claims] == outcomes


def test_the_models_that_a_page_names_are_the_built_in_ones():
    from bitdistiller.models.registry import known_names

    page = (ROOT / "docs" / "howto" / "own-model.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith("1. the name of a built-in model"))
    assert set(re.findall(r"`([^`]+)`", line)) == set(known_names())


def test_the_readme_s_python_runs():
    names = {}
    for block in blocks("README.md"):
        if block.language == "python" and not block.reason:
            exec(compile(block.text, str(block), "exec"), names)
    assert "fmt" in names


# --- the site -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    """Pages that docs/pages.py writes."""
    import importlib.util

    specification = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "pages.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.pages(ROOT)


def test_the_generated_pages_are_those_that_documents_link_to(generated):
    assert set(generated) == set(GENERATED)


def test_the_register_has_every_claim_and_the_verdicts_on_disk(generated):
    import json

    from bitdistiller.analysis.study import study_names

    page = generated["claims.md"]
    for name in study_names(ROOT / "studies"):
        part = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        for claim in load_study(name, ROOT / "studies").claims:
            row = next(line for line in part.splitlines() if line.startswith(f"| `{claim.id}`<br>"))
            assert claim.sentence in row and claim.source in row
            committed = ROOT / "results" / "studies" / f"{name}.json"
            claims = json.loads(committed.read_text())["claims"] if committed.exists() else []
            judged = {one["id"]: one for one in claims}.get(claim.id)
            if judged and judged["sentence"] == claim.sentence:
                assert judged["verdict"]["outcome"] in row


def test_the_reference_has_every_parameter_and_every_command(generated):
    from bitdistiller import config
    from bitdistiller.cli import app

    sections = [
        value for value in vars(config).values() if isinstance(value, type) and issubclass(value, config.Section)
    ]
    for section in sections:
        for key in section.model_fields:
            assert f"| `{key}` |" in generated["reference/params.md"], f"{section.__name__}.{key}"
    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        assert f"## `bitdistiller {name}`" in generated["reference/commands.md"]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The documentation, built strictly: a link or a name that leads nowhere is an error."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=environment() | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(DOCUMENTS) - 3
    loaded = re.compile(
        r"""<(?:script|img|iframe|source)[^>]+src=["']?(?:https?:)?//|<link[^>]+href=["']?(?:https?:)?//"""
    )
    for page in pages:
        text = page.read_text()
        assert not loaded.search(text), page
        assert ":math:" not in text and ":::" not in text, page
        assert "wzxhzdk" not in text, f"{page}: a formula was not put back"
    assert "<math" in (site / "reference" / "losses.html").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="there is no Chromium to look with")
def test_search_works_from_disk_without_a_network(site):
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    look = [*options, "--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom"]
    address = f"{(site / 'index.html').as_uri()}?q=clipping"
    done = subprocess.run(["chromium", *look, address], capture_output=True, text=True, timeout=120)
    assert re.search(r"\d+ matching documents", done.stdout)
    assert "CONSOLE" not in done.stderr


# --- word by word ---------------------------------------------------------------------------------------------------

HOW_TO = [
    "docs/howto/own-model.md",
    "docs/howto/reasoning.md",
    "docs/howto/export.md",
    "docs/howto/quantizer-in-ci.md",
    "docs/howto/audit.md",
    "docs/howto/compare.md",
]


@pytest.mark.slow
def test_the_tutorial_ends_with_a_verdict_a_table_and_three_seeds(after_tutorial):
    mine = after_tutorial.root / "profiles" / "mine"
    for folder, seeds in ((mine, 1), (mine / "profiles" / "seeds-3", 3)):
        study = yaml.safe_load((folder / "results" / "studies" / "learned_scales.json").read_text())
        assert [len(claim["verdict"]["explanation"]) > 0 for claim in study["claims"]] == [True, True]
        assert study["claims"][0]["verdict"]["seeds"] == seeds
        assert r"\toprule" in (folder / "reports" / "tables" / "learned_scales.tex").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("document", HOW_TO)
def test_how_to_pages_do_what_they_say(after_tutorial, document):
    after_tutorial.follow(document)


@pytest.mark.slow
def test_the_readme_s_commands_work(tmp_path, tiny_model, tiny_text, warm):
    root = copy_repository(tmp_path / "reader")
    text = shrunk((root / "params.yaml").read_text(), tiny_text)
    params = yaml.safe_load(text.replace("micro-1m", str(tiny_model)))
    params.pop("defaults")
    runs = [run for named in params["studies"]["objectives"]["runs"].values() for run in named]
    wanted = {
        "training_text": ["by-1m"],
        "data": ["self-1m"],
        "quantizers": ["1m-int2"],
        "runs": runs,
        "baselines": ["1m-full"],
        "studies": ["objectives"],
        "student_text": [],
        "ptq": [],
    }
    for section, names in wanted.items():
        params[section] = {name: params[section][name] for name in names}
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    shutil.rmtree(root / "results")
    subprocess.run(
        ["git", "-c", "user.name=r", "-c", "user.email=r@localhost", "commit", "-qam", "small"], cwd=root, check=True
    )
    Reader(root, warm).follow("README.md")
    assert (root / "results" / "studies" / "objectives.json").exists()
