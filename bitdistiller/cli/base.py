"""What all commands share: the application, its exit status, where a scale keeps what it makes."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from bitdistiller.errors import UserError, sentence_of

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Regenerate, judge and write up the claims of BitDistiller and its follow-up. `make reproduce` runs it all; "
    "these are the single stages, run from a folder with a params.yaml.",
)

ParamsPath = Annotated[Path, typer.Option("--params", help="Parameter file of the scale.")]
ARTIFACTS, RESULTS = Path("artifacts"), Path("results")
DEFAULT_PARAMS = Path("params.yaml")


def main() -> None:
    """Entry point: what the user can mend becomes one sentence on stderr and an exit status."""
    try:
        app()
    except Exception as error:
        sentence = sentence_of(error)
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(getattr(error, "status", UserError.status))


def load(path: Path):
    """The parameters of a scale."""
    from bitdistiller.config import load_params

    return load_params(path)


def write_json(record: dict, path: Path) -> None:
    """Write a record for people and programs to read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")


def write_scores(scores, items, folder: Path) -> None:
    """Write a model's scores and the items behind them, and print the scores."""
    from bitdistiller.results import write_items

    write_items(items, folder / "items.csv")
    scores.write(folder / "scores.json")
    write_json(scores.metrics(), folder / "metrics.json")
    for score in scores.scores:
        print(
            f"{scores.run}: {score.task} {score.metric} {score.value:.4g} [{score.low:.4g}, {score.high:.4g}], "
            f"n = {score.n}"
        )
