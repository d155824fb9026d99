"""What can be known to be wrong before anything is computed, so that no typo waits behind hours of training."""

from collections.abc import Iterator
from pathlib import Path

from bitdistiller.analysis.study import load_study, study_params
from bitdistiller.config import Params, entry
from bitdistiller.data.hub import Repository, UnreachableError, commit_of, hub_data, require_access
from bitdistiller.data.text import known_text
from bitdistiller.models import require_model
from bitdistiller.peers import peers_python, require_python
from bitdistiller.quant import make_format
from bitdistiller.quant.clip import require_range
from bitdistiller.reasoning.prompts import SOURCES
from bitdistiller.sandbox import require_isolation


def check(params: Params) -> None:
    """Resolve every name in the parameters: models, texts, formats, studies and the runs these need.

    Repositories of the hub are asked for where it can be reached; one that is not pinned to a commit is printed, with
    the commit that it has now. Tasks that are not among the local benchmarks are left to lm-eval, which takes long to
    list its own.

    Raises:
        UserError: the first name that leads nowhere.
    """
    for quantizer in params.quantizers.values():
        fmt = make_format(quantizer.format, bits=quantizer.bits, group_size=quantizer.group_size)
        if quantizer.clip != "none":
            require_range(fmt)
    texts, sources = _texts(params), {name for text in params.instruction_text.values() for name in text.sources}
    for name in texts:
        known_text(name)
    for name in sources:
        entry(SOURCES, "instruction sources", name)
    repositories = {require_model(name) for name in _models(params)} - {None}
    for name in params.studies:
        study_params(load_study(name, Path(params.root) / "studies"), params)
    tasks = {name for name, task in params.evaluation.tasks.items() if task.source == "hub"}
    data = {hub_data()[name].repository for name in (texts | sources | tasks) & hub_data().keys()}
    for note in hub_notes(sorted(repositories | data, key=str)):
        print(note)


def _texts(params: Params) -> set[str]:
    """Names of the texts that are read."""
    written = [*params.training_text.values(), *params.student_text.values()]
    sections = [*written, *params.quantizers.values(), *params.evaluation.perplexity.values()]
    validation = [name for run in params.runs.values() for name in run.validation_text]
    return {name for section in sections for name in section.text}.union(validation)


def _models(params: Params) -> set[str]:
    """Names of the models that are loaded."""
    models = {part.model for part in (*params.quantizers.values(), *params.baselines.values())}
    models |= {data.teacher for data in params.data.values()}
    return models | {text.generator for text in (*params.training_text.values(), *params.instruction_text.values())}


def hub_notes(repositories: list[Repository]) -> Iterator[str]:
    """A line on each repository that is not pinned to a commit, or that the hub cannot be asked about.

    Raises:
        UserError: the hub says that one is gated, does not exist, or has no such revision.
    """
    for repository in repositories:
        try:
            require_access(repository)
            commit = commit_of(repository)
        except UnreachableError as error:
            yield f"{repository}: {'' if repository.pinned else 'not pinned to a commit, and cannot be seen: '}{error}"
            continue
        if not repository.pinned:
            moving = repository.revision or "main"
            yield (
                f"{repository}: not pinned to a commit, and {moving} may move; it is at {commit} now, so write "
                f"{repository.id}@{commit}"
            )


def check_environment(params: Params) -> None:
    """Ask for what parameters need of this machine: other people's quantizers, isolation for programs of a model.

    Raises:
        UserError: their environment was not made yet, or this machine does not let programs be isolated.
    """
    if params.peers:
        require_python(peers_python(params))
    if any(asked.humaneval for asked in params.reasoning.values()):
        require_isolation()
