"""What can be known to be wrong before anything is computed, so that no typo waits behind hours of training."""

from pathlib import Path

from bitdistiller.analysis.study import load_study, study_params
from bitdistiller.config import Params, entry
from bitdistiller.data.text import known_text
from bitdistiller.models import model_origin
from bitdistiller.peers import peers_python, require_python
from bitdistiller.quant import make_format
from bitdistiller.quant.clip import require_range
from bitdistiller.reasoning.prompts import SOURCES
from bitdistiller.sandbox import require_isolation


def check(params: Params) -> None:
    """Resolve every name in the parameters: models, texts, formats, studies and the runs these need.

    Tasks that are not among the local benchmarks are left to lm-eval, which takes long to list its own.

    Raises:
        UserError: the first name that leads nowhere.
    """
    for quantizer in params.quantizers.values():
        fmt = make_format(quantizer.format, bits=quantizer.bits, group_size=quantizer.group_size)
        if quantizer.clip != "none":
            require_range(fmt)
    written = [*params.training_text.values(), *params.student_text.values()]
    sections = [*written, *params.quantizers.values(), *params.evaluation.perplexity.values()]
    for name in {name for section in sections for name in section.text}:
        known_text(name)
    models = {part.model for part in (*params.quantizers.values(), *params.baselines.values())}
    models |= {data.teacher for data in params.data.values()}
    models |= {text.generator for text in (*params.training_text.values(), *params.instruction_text.values())}
    for name in models:
        model_origin(name)
    for name in {name for text in params.instruction_text.values() for name in text.sources}:
        entry(SOURCES, "instruction sources", name)
    for name in params.studies:
        study_params(load_study(name, Path(params.root) / "studies"), params)


def check_environment(params: Params) -> None:
    """Ask for what parameters need of this machine: other people's quantizers, isolation for programs of a model.

    Raises:
        UserError: their environment was not made yet, or this machine does not let programs be isolated.
    """
    if params.peers:
        require_python(peers_python(params))
    if any(asked.humaneval for asked in params.reasoning.values()):
        require_isolation()
