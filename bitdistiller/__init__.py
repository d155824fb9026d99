"""Sub-4-bit language models by quantization-aware training and self-distillation: library behind the studies.

Rooms: ``quant`` (weight formats, clipping), ``distill`` (losses, training), ``models`` and ``data`` (names to things),
``evaluate``, ``analysis`` (statistics, verdicts), ``report``, ``export`` (packed checkpoints, which transformers loads
once this package is imported).
"""

from bitdistiller.export import register_with_transformers

register_with_transformers()
