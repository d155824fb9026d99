"""What can be known to be wrong before anything is computed, so that no typo waits behind hours of training."""

from pathlib import Path

from bitdistiller.analysis.study import load_study, study_params
from bitdistiller.config import Params
from bitdistiller.data.text import known_text
from bitdistiller.models import model_origin
from bitdistiller.peers import peers_python, require_python
from bitdistiller.quant import make_format
from bitdistiller.quant.clip import require_range


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
    sections = [*params.texts.values(), *params.quantizers.values(), *params.evaluation.perplexity.values()]
    for name in {name for section in sections for name in section.text}:
        known_text(name)
    models = {entry.model for entry in (*params.quantizers.values(), *params.baselines.values())}
    models |= {data.teacher for data in params.data.values()}
    models |= {text.generator for text in params.training_text.values()}
    for name in models:
        model_origin(name)
    for name in params.studies:
        study_params(load_study(name, Path(params.root) / "studies"), params)


def check_environment(params: Params) -> None:
    """Ask for the environment of other people's quantizers, where the parameters name any.

    Raises:
        UserError: it was not made yet.
    """
    if params.peers:
        require_python(peers_python(params))
