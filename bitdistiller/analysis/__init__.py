"""Results -> statistics and verdicts.

``stats`` holds the tests on per-item results, ``verdict`` what a claim and its outcome are, ``study`` the contract of a
study file and the stage that computes one, ``record`` what that stage writes, ``rows`` and ``published`` the numbers
of its table.
"""
