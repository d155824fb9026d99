"""One of other people's quantizers on one model folder: `python runner.py METHOD MODEL IDS OUT --bits 2 ...`.

A program of its own, not a module of the library: it runs in the peers' environment (`make peers`), where nothing of
this project is installed. MODEL is a transformers folder in fp32, IDS a safetensors file with the calibration tokens
``input_ids`` (B, T). OUT, safetensors too, gets every parameter of the quantized model by its name, in fp32: of
quantized layers the values that their codes stand for. Its metadata has the versions of the packages that made it.

Every method is used as its package documents it: asymmetric, groups along the input dimension, the package's own
defaults for all that is not given here, fp32 on the CPU. Scales (and HQQ's zero points, which are no whole numbers) go
through fp16, in which all three store them; the values themselves stay in fp32, as those of our own formats do.

GPTQ's values are read from what it saves, by its own decoder. They are packed by its plain routine, not by the default,
which wants a C++ compiler, and as `gptq_v2`, as the first layout cannot hold a zero point of 0.
"""

import argparse
import json
import os
import sys
import tempfile
from importlib import import_module, metadata
from pathlib import Path

PACKAGES = {"gptq": "gptqmodel", "hqq": "hqq", "auto-round": "auto-round"}
BATCH = 8  # sequences in a step of AutoRound: its default


def main() -> None:
    """Read the command line, quantize, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method", choices=list(PACKAGES))
    for name in ("model", "ids", "out"):
        parser.add_argument(name)
    for name in ("bits", "group-size", "iterations", "threads"):
        parser.add_argument(f"--{name}", type=int, required=name != "iterations")
    options = parser.parse_args()
    versions = {name: metadata.version(name) for name in (PACKAGES[options.method], "torch", "transformers")}
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiling takes longer than it saves here, and wants a compiler
    os.environ["GPTQMODEL_CPU_WORKERS"] = "2"  # by default half the cores, each with all of torch's threads

    import torch
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(options.threads)
    method = {"gptq": gptq, "hqq": hqq, "auto-round": auto_round}[options.method]
    found = method(options, load_file(options.ids)["input_ids"])
    found = {name: value.detach().float().contiguous() for name, value in found.items()}
    save_file(found, options.out, {"versions": json.dumps(versions)})


def load(folder: str):
    """The model in a folder, fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def gptq(options, ids) -> dict:
    """Parameters by name after GPTQ by gptqmodel."""
    import torch
    from safetensors.torch import load_file

    software = import_module("gptqmodel")
    config = software.QuantizeConfig(
        bits=options.bits,
        group_size=options.group_size,
        sym=False,
        format="gptq_v2",
        pack_impl="original",
        offload_to_disk=False,
    )
    model = software.GPTQModel.load(options.model, config, device="cpu", dtype=torch.float32)
    model.quantize(
        [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in ids], calibration_sort=None
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        stored = {name: value for file in Path(folder).glob("*.safetensors") for name, value in load_file(file).items()}
        backend = software.BACKEND.GPTQ_TORCH
        packed = software.GPTQModel.load(folder, backend=backend, device="cpu", dtype=torch.float16).model
    torch.nn.Module.float(packed)  # it loads in 16 bits only, and would multiply scales and codes in them
    layers = {name: layer for name, layer in packed.named_modules() if hasattr(layer, "dequantize_weight")}
    others = {name: value for name, value in stored.items() if name.rpartition(".")[0] not in layers}
    return others | {f"{name}.weight": layer.dequantize_weight().T for name, layer in layers.items()}


def hqq(options, ids) -> dict:
    """Parameters by name after HQQ, which looks at weights alone."""
    import torch
    from torch.nn import Linear

    quantizer = import_module("hqq.core.quantize").Quantizer
    model = load(options.model)
    for layer in model.modules():
        if isinstance(layer, Linear) and layer is not model.get_output_embeddings():
            codes, meta = quantizer.quantize(
                layer.weight.data, nbits=options.bits, group_size=options.group_size, axis=1, device="cpu"
            )
            meta |= {part: meta[part].half().float() for part in ("scale", "zero")}
            layer.weight.data = quantizer.dequantize(codes, meta | {"compute_dtype": torch.float32})
    return dict(model.named_parameters())


def auto_round(options, ids) -> dict:
    """Parameters by name after AutoRound, ``iterations`` steps a block."""
    import torch
    from transformers import AutoTokenizer

    quantizer = import_module("auto_round").AutoRound(
        load(options.model),
        AutoTokenizer.from_pretrained(options.model),
        bits=options.bits,
        group_size=options.group_size,
        sym=False,
        iters=options.iterations,
        dataset=[{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(BATCH)],
        nsamples=len(ids),
        seqlen=ids.shape[1],
        batch_size=BATCH,
        device_map="cpu",
        amp=False,
        enable_torch_compile=False,
        low_cpu_mem_usage=False,
    )
    model, _ = quantizer.quantize()
    return dict(model.named_parameters())


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its neighbours are modules of bitdistiller.peers, not top-level ones
    try:
        main()
    except ImportError as error:
        sys.exit(f"missing: {error.name or error}")
