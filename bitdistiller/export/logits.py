"""Logits of an exported folder, by the software it was written for: `python logits.py CONTAINER FOLDER IN OUT THREADS`.

A program of its own, not a module of the library: it runs in whatever environment has that software, and there nothing
of this project need be installed, except for native folders. IN has ``input_ids``; OUT gets fp32 ``logits``, both
safetensors. A model in 16 bits is cast and run a second time in fp32 (``logits_fp32``): in 16 bits the order in which a
matrix product adds up shows, in fp32 only the weights do.
"""

import json
import os
import sys
from importlib import import_module
from pathlib import Path


def main(container: str, folder: str, ids_file: str, logits_file: str, threads: str) -> None:
    """Load, run, write."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(int(threads))
    dtype = getattr(torch, json.loads((Path(folder) / "config.json").read_text())["dtype"])
    model = _load_gptq(folder, dtype) if container == "gptq" else _load(container, folder, dtype)
    ids = load_file(ids_file)["input_ids"]
    with torch.no_grad():
        found = {"logits": model(input_ids=ids).logits.float()}
        if dtype != torch.float32:
            model = torch.nn.Module.float(model)  # transformers' own refuses models that it calls quantized
            found["logits_fp32"] = model(input_ids=ids).logits
    save_file({key: value.contiguous() for key, value in found.items()}, logits_file, {"torch": torch.__version__})


def _load(container: str, folder: str, dtype):
    if container == "native":
        import bitdistiller  # noqa: F401  (makes transformers know the container)
    else:
        import_module("compressed_tensors")  # a missing package is an ImportError here, not a guess later
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def _load_gptq(folder: str, dtype):
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiling the decoder takes longer than all else here
    software = import_module("gptqmodel")
    backend = software.BACKEND.GPTQ_TORCH
    return software.GPTQModel.load(folder, backend=backend, device="cpu", dtype=dtype).model.eval()


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its neighbours are modules of bitdistiller.export, not top-level ones
    try:
        main(*sys.argv[1:])
    except ImportError as error:
        sys.exit(f"missing: {error}")
