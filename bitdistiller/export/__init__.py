"""A trained student -> packed checkpoints: our own container, and two that other software loads.

* ``native``: every format at every width, codes as dense bytes; ``AutoModelForCausalLM.from_pretrained`` loads it after
  ``import bitdistiller``;
* ``affine``: ``compressed-tensors`` and ``gptq`` checkpoints, for integer formats;
* ``folder``: what the containers share: which tensors go where, and folders that are whole or absent;
* ``verify``: a written checkpoint against the student, loaded in a fresh process by the software it was written for;
* ``run``: a run of ``params.yaml`` by its name -> an export.

In this file is only what makes ``import bitdistiller`` enough for loading. transformers asks two tables for the classes
of a quantization method, and ours have to be in them; but importing transformers takes seconds, which ``bitdistiller
--help`` should not. So the entries are made at the moment when somebody imports transformers' tables, and what they
name there are empty shells, which fetch the real classes, and torch with our formats, when a packed folder is loaded.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

METHOD = "bitdistiller"  # `quant_method` in config.json
_TABLES = "transformers.quantizers.auto"


class _AfterImport:
    """Finds transformers' tables as everybody else would, and completes them right after their import."""

    def find_spec(self, fullname: str, path=None, target: ModuleType | None = None) -> ModuleSpec | None:
        others = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, others), None) if fullname == _TABLES else None
        if spec is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register(module)

        spec.loader.exec_module = execute_and_register
        return spec


def register_with_transformers() -> None:
    """Make transformers load packed folders of ours: at once if it is imported, else as soon as it is."""
    if _TABLES in sys.modules:
        _register(sys.modules[_TABLES])
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def _register(tables: ModuleType) -> None:
    if METHOD in tables.AUTO_QUANTIZER_MAPPING:
        return

    class PackedConfigShell(tables.QuantizationConfigMixin):
        @classmethod
        def from_dict(cls, config_dict, **kwargs):
            from bitdistiller.export.native import PackedConfig

            return PackedConfig.from_dict(config_dict, **kwargs)

    class PackedQuantizerShell(tables.HfQuantizer):
        def __new__(cls, *args, **kwargs):
            from bitdistiller.export.native import PackedQuantizer

            return PackedQuantizer(*args, **kwargs)

    tables.register_quantization_config(METHOD)(PackedConfigShell)
    tables.register_quantizer(METHOD)(PackedQuantizerShell)
