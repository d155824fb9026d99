"""Pages that no one types: the claims register, the schema of params.yaml, the commands and their options.

MkDocs calls ``on_files`` when it builds the site (a hook of `mkdocs.yml`). What the pages say is read from the code and
from committed results at that moment, so a page cannot lag behind them. The other pages of the reference come from
docstrings, by mkdocstrings.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click
from typer.main import get_command

from bitdistiller.analysis.record import StudyReport
from bitdistiller.analysis.study import Study, load_study, study_names
from bitdistiller.analysis.verdict import Claim, JudgedClaim
from bitdistiller.cli import app
from bitdistiller.config import Params
from bitdistiller.errors import UserError
from bitdistiller.report.scales import origins

sys.path.insert(0, str(Path(__file__).parent))  # a hook is not a module of any package
from formulas import Formulas

MARKS = {"supported": "✓ supported", "contradicted": "✗ contradicted", "undecided": "? undecided"}


@event_priority(100)  # before mkdocstrings takes the extensions over
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Let Markdown read the formulas of docstrings."""
    config.markdown_extensions.append(Formulas())
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those in docs/."""
    for path, text in pages(Path(config.config_file_path).parent).items():
        files.append(File.generated(config, path, content=text))
    return files


def pages(root: Path) -> dict[str, str]:
    """Markdown of every generated page by its path."""
    return {"claims.md": claims(root), "reference/params.md": params(root), "reference/commands.md": commands()}


# --- the claims register --------------------------------------------------------------------------------------------


def claims(root: Path) -> str:
    """Every study with its claims and, at each scale whose results are in the tree, their verdicts."""
    judged = {scale: reports(folder) for scale, folder in scales(root).items()}
    lines = [
        "# Claims register",
        "Every claim that the studies decide, and its verdict at each scale whose results are in this tree. Below "
        "paper scale the models are others than the papers': directions and ratios are tested, absolute numbers are "
        "not comparable ([why](explanation/scales.md)). Rules of a claim stand in its study before the runs; the few "
        "that were changed later are in the [log](LOG.md) ([how verdicts are made](explanation/verdicts.md)).",
        _table(["scale", *MARKS.values(), "studies read"], _counts(judged)),
        "Full-precision weights that students are trained from and compared with:",
        *_origins(judged),
    ]
    for name in study_names(root / "studies"):
        study = load_study(name, root / "studies")
        rules = ast.get_docstring(ast.parse((root / "studies" / f"{name}.py").read_text()))
        found = {scale: studies[name] for scale, studies in judged.items() if name in studies}
        lines += [
            f"## {name}",
            f"**{study.question}** Source: {study.source}.",
            *_detectable(found),
            _table(["claim", *found], [_row(claim, found) for claim in study.claims]),
            '??? note "What is varied, and the rules"\n\n' + _indented(rules),
        ]
    return "\n\n".join(lines) + "\n"


def scales(root: Path) -> dict[str, Path]:
    """Folders with results of studies, by the scale's name."""
    folders = [root, *sorted(path.parent for path in root.glob("profiles/**/params.yaml"))]
    return {_scale_name(root, folder): folder for folder in folders if any(folder.glob("results/studies/*.json"))}


def _scale_name(root: Path, folder: Path) -> str:
    return "micro" if folder == root else folder.relative_to(root / "profiles").as_posix()


def reports(folder: Path) -> dict[str, StudyReport | None]:
    """Records of a scale's studies by name; None for a record that this version of the code does not read."""
    found: dict[str, StudyReport | None] = {}
    for path in sorted(folder.glob("results/studies/*.json")):
        try:
            found[path.stem] = StudyReport.read(path)
        except UserError:
            found[path.stem] = None
    return found


def _counts(judged: dict[str, dict[str, StudyReport | None]]) -> Iterator[list[str]]:
    for scale, studies in judged.items():
        read = [report for report in studies.values() if report]
        outcomes = [claim.verdict.outcome for report in read for claim in report.claims]
        yield [scale, *(str(outcomes.count(outcome)) for outcome in MARKS), f"{len(read)} of {len(studies)}"]


def _origins(judged: dict[str, dict[str, StudyReport | None]]) -> Iterator[str]:
    for scale, studies in judged.items():
        if said := origins([report for report in studies.values() if report]):
            yield f"- **{scale}**: {'; '.join(said)}."


def _detectable(found: dict[str, StudyReport | None]) -> Iterator[str]:
    for scale, report in found.items():
        if report:
            yield f"Smallest effect that the design detects at {scale} scale: {report.detectable.text}."


def _row(claim: Claim, found: dict[str, StudyReport | None]) -> list[str]:
    verdicts = [_verdict(claim, report) for report in found.values()]
    return [f"`{claim.id}`<br>{claim.sentence}<br>*{claim.source}*", *verdicts]


def _verdict(claim: Claim, report: StudyReport | None) -> str:
    if report is None:
        return "results of another version of the code"
    judged: JudgedClaim | None = next((one for one in report.claims if one.id == claim.id), None)
    if judged is None or judged.sentence != claim.sentence:
        return "not judged since the claim was last changed"
    verdict = judged.verdict
    return f"{MARKS[verdict.outcome]}<br>{verdict.description}: {verdict.text}, over {verdict.basis}"


# --- params.yaml ----------------------------------------------------------------------------------------------------


def params(root: Path) -> str:
    """Keys, types and limits of a parameter file, from the classes that check it."""
    schema = Params.model_json_schema()
    lines = [
        "# params.yaml",
        "One file describes one scale. A key that is not listed here, a value out of range and a name that leads "
        "nowhere are refused before anything is computed (`bitdistiller check`). NAME is a name that you choose.",
        *_section("", schema, schema["$defs"], {}),
        "## studies.NAME",
        "What each study takes. *Conditions* are labels under `runs` that its claims name; every label has a list of "
        "entries of `runs`, `baselines`, `ptq` or `peers`, one a seed.",
        _table(["study", "keys", "conditions"], [_study_keys(study) for study in _studies(root)]),
    ]
    return "\n\n".join(lines) + "\n"


def _section(path: str, schema: dict, definitions: dict, seen: dict[str, str]) -> Iterator[str]:
    """Heading, description and table of an object, then the same of the objects in it."""
    if path:
        yield f"## {path}"
    yield schema.get("description", "").replace("``", "`")
    required = schema.get("required", [])
    rows = [
        [f"`{key}`", _type(spec), "" if key in required else "may be left out"]
        for key, spec in schema["properties"].items()
    ]
    yield _table(["key", "value", ""], rows)
    for key, spec in schema["properties"].items():
        named = spec.get("additionalProperties")
        choices = [spec, *spec.get("anyOf", [])]  # an object that may be left out is one of two choices
        own = next((choice["$ref"] for choice in choices if "$ref" in choice), None)
        reference = own or (named.get("$ref") if isinstance(named, dict) else None)
        if reference is None:
            continue
        inner = f"{path}.{key}".lstrip(".") + ("" if own else ".NAME")
        definition = reference.rpartition("/")[2]
        if definition in seen:
            yield f"## {inner}"
            yield f"The same keys as `{seen[definition]}`."
        else:
            seen[definition] = inner
            yield from _section(inner, definitions[definition], definitions, seen)


def _type(spec: dict) -> str:
    """A JSON schema of one value in words."""
    if "anyOf" in spec:
        return ", or ".join(_type(option) for option in spec["anyOf"])
    if "enum" in spec:
        return "one of " + ", ".join(f"`{value}`" for value in spec["enum"])
    if "$ref" in spec:
        return "see below"
    kind = spec.get("type", "anything")
    if kind == "array":
        return f"list of {_type(spec['items'])}" + (", not empty" if spec.get("minItems") else "")
    if kind == "object":
        inner = spec.get("additionalProperties")
        return f"NAME: {_type(inner)}" if isinstance(inner, dict) else "mapping"
    words = {"string": "text", "null": "nothing", "boolean": "true or false"}
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤"}
    limits = [f"{sign} {spec[key]:g}" for key, sign in signs.items() if key in spec]
    return " ".join([words.get(kind, kind), " and ".join(limits)]).strip()


def _studies(root: Path) -> Iterator[Study]:
    for name in study_names(root / "studies"):
        yield load_study(name, root / "studies")


def _study_keys(study: Study) -> list[str]:
    fields = study.params.model_fields
    keys = [f"`{key}`" + ("" if field.is_required() else " (may be left out)") for key, field in fields.items()]
    return [f"`{study.name}`", ", ".join(keys), "; ".join(getattr(study.params, "required", ()))]


# --- the command line -----------------------------------------------------------------------------------------------


def commands() -> str:
    """Every command with its options, as typer writes it."""
    command = get_command(app)
    text = get_docs_for_click(obj=command, ctx=click.Context(command, info_name="bitdistiller"), name="bitdistiller")
    return text.replace("# `bitdistiller`\n", "# Commands\n", 1)


# --- Markdown -------------------------------------------------------------------------------------------------------


def _table(head: list[str], rows) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )


def _indented(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines())
