"""What ``bitdistiller sandbox`` prints: lines of text, and whether all is well."""

from pathlib import Path

from bitdistiller.errors import UserError
from bitdistiller.sandbox.attacks import ATTACKS, run_attacks
from bitdistiller.sandbox.run import require_isolation, run_program


def program_lines(program: Path, tests: Path | None, without_isolation: bool) -> tuple[list[str], bool]:
    """Run a file, against a file of tests if there is one; ``UserError`` if one cannot be read."""
    tests_text = "" if tests is None else _read(tests)
    outcome = run_program(_read(program), tests_text, without_isolation=without_isolation)
    printed = [outcome.output.rstrip("\n")] if outcome.output else []
    verdict = f"{outcome.verdict}: {outcome.detail}" if outcome.detail else outcome.verdict
    return [*printed, f"{verdict} ({outcome.seconds:.2f} s, {outcome.peak_bytes / 2**20:.0f} MiB)"], outcome.passed


def check_lines() -> tuple[list[str], bool]:
    """What holds for a program on this machine; ``UserError`` if it cannot be isolated."""
    return require_isolation(), True


def attack_lines() -> tuple[list[str], bool]:
    """A table of all attacks with their verdicts, and whether each was the expected one and nothing was touched."""
    outcomes, touched = run_attacks()
    width = max(len(attack.name) for attack in ATTACKS)
    lines = [
        f"{'' if outcome.verdict == attack.verdict else 'NOT ' + attack.verdict + ': '}"
        f"{attack.name:{width}}  {outcome.verdict:12}  {outcome.detail}"
        for attack, outcome in zip(ATTACKS, outcomes, strict=True)
    ]
    stopped = sum(outcome.verdict == attack.verdict for attack, outcome in zip(ATTACKS, outcomes, strict=True))
    lines.append(f"{stopped} of {len(ATTACKS)} attacks ended as they must; touched on the host: {touched or 'nothing'}")
    return lines, stopped == len(ATTACKS) and not touched


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({error}); name a Python file") from None
