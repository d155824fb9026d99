"""The clipping search beside the nested loops that say the same, measured side by side in one process.

The obvious version takes every row, group and candidate in turn, quantizes the clamped group and compares outputs on
the calibration activations. That takes minutes for a whole matrix, so it searches ``--rows`` rows and its time is
scaled up to all of them; what it finds is compared with ours on those rows. Run with ``make benchmark``.
"""

import argparse
import json
from pathlib import Path

import torch
from measure import measured

from bitdistiller.provenance import environment
from bitdistiller.quant import Format, make_format, search_clip
from bitdistiller.quant.clip import SHRINKS


def nested_loops(w: torch.Tensor, x: torch.Tensor, fmt: Format) -> tuple[torch.Tensor, torch.Tensor]:
    """Bounds of every group by the definition."""
    size = fmt.group_size
    low, high = (torch.empty(len(w), w.shape[1] // size) for _ in range(2))
    for row in range(len(w)):
        for group in range(w.shape[1] // size):
            part = slice(group * size, (group + 1) * size)
            weights, inputs, best = w[row, part], x[:, part], float("inf")
            output = inputs @ weights
            for high_shrink in SHRINKS:
                for low_shrink in SHRINKS:
                    bounds = weights.min().clamp_max(0) * low_shrink, weights.max().clamp_min(0) * high_shrink
                    values = fmt.round(weights.clamp(*bounds)[None])[0]
                    error = (inputs @ values - output).square().sum().item()
                    if error < best:
                        best, (low[row, group], high[row, group]) = error, bounds
    return low, high


def main() -> None:
    """Measure, print, and write the JSON that documents read."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=2, default=(576, 1536), metavar=("OUT", "IN"))
    parser.add_argument("--rows", type=int, default=4, help="rows that the nested loops search")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/clip.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    w, x = torch.randn(*arguments.shape), torch.randn(arguments.tokens, arguments.shape[1])
    fmt = make_format("int-asym", bits=2, group_size=64)
    search_clip(w[:1], x, fmt)
    found: dict[str, tuple] = {}
    ours, our_memory = measured(lambda: found.update(ours=search_clip(w, x, fmt)))
    some = w[: arguments.rows]
    loops, loop_memory = measured(lambda: found.update(loops=nested_loops(some, x, fmt)))
    loops *= len(w) / len(some)
    agreeing = torch.stack(
        [torch.isclose(a[: len(some)], b) for a, b in zip(found["ours"], found["loops"], strict=True)]
    )
    result = {
        "shape": list(arguments.shape),
        "seconds": {"ours": round(ours, 3), "nested_loops": round(loops, 1)},
        "rows_searched_by_nested_loops": len(some),
        "memory_mib": {"ours": round(our_memory / 2**20), "nested_loops": round(loop_memory / 2**20)},
        "times_faster": round(loops / ours, 1),
        "bounds_that_agree": round(agreeing.float().mean().item(), 4),
        "environment": environment().model_dump(),
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "environment"}, indent=2))


if __name__ == "__main__":
    main()
