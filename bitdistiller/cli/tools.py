"""Commands that need no scale: an audit of printed tables, formats side by side, programs in a sandbox."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from bitdistiller.cli.base import app
from bitdistiller.errors import UserError


@app.command()
def audit(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="CSV files, or folders of them.", show_default="reports/published")
    ] = None,
    claims: Annotated[
        Path | None, typer.Option(help="Claim file (YAML).", show_default="claims.yaml beside the tables")
    ] = None,
    items: Annotated[Path | None, typer.Option(help="Item counts beyond the known ones (YAML, `name: n`).")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write the findings as JSON.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with status 1 if anything more than a last digit is found.")
    ] = False,
    calibrate: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Audit N clean generated tables and N/4 of each corruption instead."),
    ] = None,
) -> None:
    """Look for printed numbers that do not add up: averages, standard errors, item counts, repeats, labels, claims.

    Findings leave the exit status at 0 unless --strict is given; bad input is status 2. How often the checks err is
    printed with every audit, and in full by --calibrate 1000.
    """
    from bitdistiller.analysis.audit import show

    if calibrate:
        from bitdistiller.analysis.audit.calibrate import calibrate as measure

        report = measure(calibrate)
        shown = show.calibration_lines(report)
    else:
        from bitdistiller.analysis.audit import audit as audit_files

        report = audit_files(paths or [Path("reports/published")], claims, items)
        shown = show.lines(report)
    print("\n".join(shown))
    if json_out is not None:
        report.write(json_out)
    if strict and not calibrate and any(finding.certainty != "last digit" for finding in report.findings):
        raise typer.Exit(1)


@app.command()
def formats(
    group_size: Annotated[int, typer.Option(min=1, help="Weights a group.")] = 128,
    bits: Annotated[
        list[int] | None, typer.Option(help="Bit width to show; give it again for another.", show_default="1 2 3 4")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Model whose layers are a source; `none` for synthetic weights.")
    ] = "smollm2-135m",
    out: Annotated[Path | None, typer.Option(help="Also write the table as CSV.")] = None,
) -> None:
    """Show what each format does to weights before training: error, bias, zeros, entropy of the codes, bits a weight.

    Rows that are clipped have each group's range shrunk for the least weight error.
    """
    import pandas as pd
    from tqdm import tqdm

    from bitdistiller.analysis.formats import compare

    rows = compare(group_size, None if model == "none" else model, bits or [1, 2, 3, 4])
    table = pd.DataFrame(tqdm(rows, desc="formats", unit="row", leave=False))
    print(table.to_string(index=False, float_format="{:.3f}".format))
    if out is not None:
        table.to_csv(out, index=False)


@app.command()
def sandbox(
    program: Annotated[
        Path | None, typer.Argument(help="Python file to run as a module.", metavar="FILE", show_default=False)
    ] = None,
    tests: Annotated[
        Path | None,
        typer.Option(help="File of tests that call its functions.", show_default="none: it runs to its end"),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Say what isolates a program on this machine.")] = False,
    attacks: Annotated[bool, typer.Option("--attacks", help="Run hostile programs, and show how each ended.")] = False,
    without_isolation: Annotated[
        bool,
        typer.Option("--run-model-code-without-isolation", help="Run FILE as you, free to read, write and send."),
    ] = False,
) -> None:
    """Run a program that nobody has read, in a sandbox; exit status 1 unless it passes its tests."""
    from bitdistiller.sandbox.commands import attack_lines, check_lines, program_lines

    if [program is not None, check, attacks].count(True) != 1 or (without_isolation and program is None):
        raise UserError("sandbox takes either FILE or --check or --attacks, and only FILE runs without isolation")
    if program is not None:
        lines, good = program_lines(program, tests, without_isolation)
    else:
        lines, good = check_lines() if check else attack_lines()
    print("\n".join(lines))
    sys.exit(0 if good else 1)
