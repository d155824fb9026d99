"""From a cell of a table back to the runs behind it.

A printed number is a cell, a cell shows one row of a study's tidy table, a row is the result of some runs, a run is two
or three stages of the pipeline with everything that they read. ``trace`` walks that chain and checks its links on the
way: the study's record must hold the number, the run's files on disk must be those that dvc.lock says the stages made.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import yaml

from bitdistiller.analysis.record import Row, RunSummary, StudyReport
from bitdistiller.assets import sha256_file
from bitdistiller.errors import UserError
from bitdistiller.report import tables
from bitdistiller.report.cells import EMPTY, Cell
from bitdistiller.report.scales import Scale
from bitdistiller.results import Cost, Environment

VERDICTS = "verdicts"


def trace(address: str, scales: list[Scale], published: Path) -> Iterator[str]:
    """Lines that lead from the cell ``TABLE.csv:ROW,COLUMN`` to its runs.

    Args:
        address: a file in ``reports/tables`` and a cell in it; ROW and COLUMN are labels or numbers from 1.
        scales: the own scale first, as ``all_scales`` gives them.
        published: folder of the papers' tables.

    Raises:
        UserError: there is no such table, row or column, or the cell is empty.
    """
    file, _, place = address.rpartition(":")
    if not file or not place:
        raise UserError(f"{address} names no cell: write it as reports/tables/NAME.csv:ROW,COLUMN")
    scale, name = _scale_and_name(Path(file), scales)
    if name == VERDICTS:
        matrix = tables.verdict_matrix({scale.name: scale.reports for scale in scales})
        row, column = _find(matrix, place, file)
        yield from _trace_verdict(row, column, matrix.at[row, column], scales)
        return
    report, frame = _table(scale, name, file)
    row, column = _find(frame, place, file)
    cell = frame.at[row, column]
    yield f"{file}, row {_label(row)!r}, column {column!r}: {cell}"
    if not isinstance(cell, Cell):
        raise UserError(
            "that cell is empty" if cell == EMPTY else "that cell is no result of a run: it is the same for all"
        )
    if cell.row.kind == "published":
        yield from _trace_published(cell.row, published)
    else:
        yield from _trace_measured(cell.row, report, scale)


def _scale_and_name(file: Path, scales: list[Scale]) -> tuple[Scale, str]:
    slugs = {scale.slug: scale for scale in scales[1:]}
    return slugs.get(file.parent.name, scales[0]), file.stem


def _table(scale: Scale, name: str, file: str) -> tuple[StudyReport, pd.DataFrame]:
    found = {}
    for report in scale.reports:
        for known, table in tables.study_tables(report).items():
            found[known] = (report, table.frame)
    if name not in found:
        raise UserError(f"{file} is no table whose cells come from runs; there are {', '.join([*found, VERDICTS])}")
    return found[name]


def _find(frame: pd.DataFrame, place: str, file: str) -> tuple:
    """The row and column that ``ROW,COLUMN`` names; labels may hold commas themselves."""
    rows = {_label(row): row for row in frame.index} | {str(i): row for i, row in enumerate(frame.index, 1)}
    columns = {str(column): column for column in frame} | {str(i): column for i, column in enumerate(frame, 1)}
    parts = place.split(",")
    splits = [(",".join(parts[:cut]).strip(), ",".join(parts[cut:]).strip()) for cut in range(1, len(parts))]
    for row, column in splits:
        if row in rows and column in columns:
            return rows[row], columns[column]
    known = next((row for row, _ in splits if row in rows), None)
    kind, names = ("column", map(str, frame)) if known else ("row", map(_label, frame.index))
    raise UserError(f"{file} has no {kind} for {place!r}; it has " + "; ".join(names))


def _label(row: object) -> str:
    return str(row[-1] if isinstance(row, tuple) else row)


def _trace_verdict(row: str, column: str, cell: str, scales: list[Scale]) -> Iterator[str]:
    study, _, claim_id = row.partition("/")
    yield f"{row}, {column} scale: {cell}"
    if cell == EMPTY:
        raise UserError(f"{row} was not judged at {column} scale")
    scale = next(scale for scale in scales if scale.name == column)
    report = scale.report(study)
    claim = next(claim for claim in report.claims if claim.id == claim_id)
    yield f"claim     {claim.sentence} ({claim.source})"
    yield f"test      {claim.verdict.explanation}"
    yield _record(scale, report)
    for run in report.runs:
        yield from _trace_run(run, scale)


def _trace_published(row: Row, published: Path) -> Iterator[str]:
    yield f"printed   {row.task} {row.metric} = {row.value:.6g} for {row.model}, condition {row.condition!r}"
    yield f"table     {published / row.source}, SHA-256 {sha256_file(published / row.source)}"
    notes = (published / "README.md").read_text().splitlines()
    yield from (f"source    {line.strip('| ')}" for line in notes if row.source in line)


def _trace_measured(row: Row, report: StudyReport, scale: Scale) -> Iterator[str]:
    runs = [run for run in report.runs if run.condition == row.condition]
    seeds = f"{len(runs)} run{'s' if len(runs) > 1 else ''}"
    error = "" if row.standard_error is None else f", standard error {row.standard_error:.4g}"
    n = "" if row.n is None else f", n = {row.n:,}"
    yield f"number    {row.task} {row.metric} = {row.value:.8g}{error}{n}: condition {row.condition!r}, {seeds}"
    yield _record(scale, report)
    for run in runs:
        yield from _trace_run(run, scale)


def _record(scale: Scale, report: StudyReport) -> str:
    path = scale.path / f"{report.name}.json"
    return f"study     {report.name} at {scale.name} scale: {path}, SHA-256 {sha256_file(path)}"


def _trace_run(run: RunSummary, scale: Scale) -> Iterator[str]:
    yield f"run       {run.run}: {run.model}; {run.origin}"
    if run.training is not None:
        yield f"  trained {_circumstances(run.training.environment, run.training.cost)}"
        yield f"  with    {_flat(run.training.parameters_used)} (hashes are SHA-256 of what it read)"
    yield f"  scored  {_circumstances(run.environment, run.scoring)}"
    yield f"  with    {_flat(run.parameters_used)}"
    original = f"; its original {run.original_sha256}" if run.original_sha256 else ""
    yield f"  weights {run.model_sha256}{original} (SHA-256 of what was scored)"
    yield f"  on      {_flat({name: data['sha256'] for name, data in run.data.items()})} (SHA-256)"
    if run.reasoning is not None:
        yield f"  reason  {_circumstances(run.reasoning.environment, run.reasoning.cost)}"
        yield f"  with    {_flat(run.reasoning.parameters_used['reasoning'])}"
    yield from _locked(run, scale)
    folder = "" if scale.folder == "." else f"cd {scale.folder} && "
    yield f"  again   {folder}bitdistiller reproduce {' '.join(scale.stages(run.run))}"


def _circumstances(environment: Environment, cost: Cost) -> str:
    tree = "uncommitted changes" if environment.dirty else "clean tree"
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    return (
        f"commit {environment.commit} ({tree}); {environment.machine}, {environment.threads} of {environment.cores} "
        f"cores; {tables.duration(cost.seconds)}, {tables.memory(cost.peak_bytes)}; Python {environment.python}, "
        f"{versions}" + (f", pinned by constraints.txt {environment.lock_sha256}" if environment.lock_sha256 else "")
    )


def _flat(values: dict) -> str:
    pairs = []
    for key, value in values.items():
        text = f"{{{_flat(value)}}}" if isinstance(value, dict) else value
        pairs.append(f"{key}={text}")
    return ", ".join(pairs)


def _locked(run: RunSummary, scale: Scale) -> Iterator[str]:
    """What dvc.lock says of the run's stages, and whether the files on disk are those."""
    lock = scale.lock
    if not lock.exists():
        yield f"  lock    {lock} does not exist: this copy has no record of the pipeline"
        return
    stages = yaml.load(lock.read_text(), Loader=yaml.CSafeLoader).get("stages", {})
    for name in scale.stages(run.run):
        if (entry := stages.get(name)) is None:
            yield f"  lock    {name} is not in {lock}"
            continue
        digest = hashlib.sha256(yaml.safe_dump(entry, sort_keys=True).encode()).hexdigest()
        states = [f"{out['path']} {_state(lock.parent / out['path'], out['md5'])}" for out in entry.get("outs", [])]
        yield f"  lock    {name}: entry SHA-256 {digest}"
        read = sorted({f"{dep['path']} {dep['md5']}" for dep in entry.get("deps", [])})
        yield f"          from {'; '.join(read)} (MD5)"
        yield f"          made {'; '.join(states)}"


def _state(path: Path, md5: str) -> str:
    if md5.endswith(".dir"):
        return md5 + ("" if path.exists() else " (not on disk)")
    if not path.exists():
        return f"{md5} (not on disk)"
    found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    return f"{md5} " + ("(as on disk)" if found == md5 else f"(ON DISK ANOTHER: {found})")
