"""What a scale costs, said before anything starts: runs, tokens, FLOPs, memory, disk, hours, and what is done already.

    params.yaml -> stages -> work (matrix products, passes over memory) -> seconds on a machine
                          -> memory by part, disk

``architecture`` knows a model's shape from its configuration alone, ``work`` counts what passes through it cost,
``memory`` what they hold, ``stages`` turns parameters into stages, ``machine`` and ``calibrate`` turn work into
seconds, and ``report`` prints it. No weights are read and nothing is downloaded but, online, a configuration.
"""
