"""What every test runs under: no hub, no telemetry, one thread a worker, checked shapes, named Hypothesis profiles.

The environment is set here and not in the Makefile so that a bare ``pytest`` behaves like ``make test``. It has to
happen before torch or transformers are imported, hence at import, and hence no import of ``bitdistiller`` in this file.
"""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest

from tests import profiles

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
os.environ["MPLBACKEND"] = "agg"
# DVC stages started by a test call `bitdistiller`: the one of this environment.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
if "PYTEST_XDIST_WORKER" in os.environ:
    # Two processes with two threads each slow each other down about tenfold on two cores.
    os.environ["OMP_NUM_THREADS"] = "1"

# Annotated shapes are checked here and nowhere else; without the dev extra the tests still run, and
# test_project.py says that the check is off.
if importlib.util.find_spec("beartype"):
    # The hook caches bytecode under a name of its own, also that of all modules first imported underneath it. Where
    # writing bytecode is switched off, each worker would compile torch and transformers anew, 10 s a time.
    sys.dont_write_bytecode = False
    # The tower lets an int stand where a float is annotated, as type checkers do.
    jaxtyping.install_import_hook("bitdistiller", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

profiles.register()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Folder of a tiny Llama with its tokenizer."""
    from tests.tiny import make_model

    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory) -> Path:
    """A file with one document a line."""
    from tests.tiny import make_text

    return make_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """The library as users have it, for tests of its own refusals: `@pytest.mark.usefixtures("unchecked_shapes")`."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
