"""Sub-4-bit language models by quantization-aware training and self-distillation: library behind the studies.

Rooms: ``quant`` (weight formats, clipping), ``distill`` (losses, training), ``models`` and ``data`` (names to things),
``evaluate``, ``analysis`` (statistics, verdicts), ``report``.
"""
