"""Whether this machine lets a sandbox be made; where it does not, tests that need one are skipped and say why."""

import pytest

from bitdistiller.errors import UserError
from bitdistiller.sandbox import require_isolation


def refusal() -> str:
    """Why no sandbox can be made here; empty if one can."""
    try:
        require_isolation()
    except UserError as error:
        return str(error)
    return ""


REFUSAL = refusal()
needs_isolation = pytest.mark.skipif(bool(REFUSAL), reason=REFUSAL)
