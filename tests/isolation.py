"""Whether this machine lets a sandbox be made; where it does not, tests that need one are skipped and say why."""

import pytest

from bitdistiller.errors import UserError
from bitdistiller.sandbox import Limits, Worker


def refusal() -> str:
    """Why no sandbox can be made here; empty if one can."""
    try:
        with Worker(Limits()) as worker:
            worker.facts()
    except UserError as error:
        return str(error)
    return ""


REFUSAL = refusal()
needs_isolation = pytest.mark.skipif(bool(REFUSAL), reason=REFUSAL)
