"""The command line: thin commands that hold no logic and import heavy modules only when called."""

from bitdistiller.cli import scale, stages, tools  # noqa: F401, each registers its commands
from bitdistiller.cli.base import app, main

__all__ = ["app", "main"]
