"""Hypothesis profiles: how hard the property tests look.

``quick`` is the default and always draws the same examples, so that a red build is red for everyone. ``deep`` draws
new ones at every run, many more of them, and prints how to replay a failure (``make test-all``, or
``pytest --hypothesis-profile=deep``). Neither has a deadline: the first call of a torch operator is slow for reasons
that are not the test's.
"""

from hypothesis import settings


def register() -> None:
    """Make both profiles known and load ``quick``; pytest's ``--hypothesis-profile`` overrides it afterwards."""
    settings.register_profile("quick", max_examples=40, deadline=None, derandomize=True, database=None)
    settings.register_profile("deep", max_examples=1000, deadline=None, print_blob=True)
    settings.load_profile("quick")
