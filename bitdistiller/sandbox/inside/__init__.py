"""What runs in the sandbox's own interpreter: the standard library alone, imported without the rest of bitdistiller.

``worker`` makes one sandbox a program, ``isolate`` moves into it, ``calls`` forbids system calls, ``judge`` runs the
tests and ``program`` the candidate's code, in two processes that talk in the plain values of ``wire``.
"""
