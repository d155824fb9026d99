"""Our decoding of few-shot prompts beside transformers' own ``generate``, measured side by side in one process.

* ours: the beginning that all prompts share is held once, caches grow in place;
* generate: transformers, whose cache is filled with the shared beginning once and then repeated for every sequence;
* whole: transformers, each sequence reading its whole prompt.

All write the same number of tokens after the same prompts, under the same autocast; nothing ends early. They take
turns, so that whatever else the machine does hits all alike; ratios of medians are the result. Run with
``make benchmark``.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch
from measure import measured
from transformers import DynamicCache

from bitdistiller.evaluate.likelihood import inference
from bitdistiller.models import load_model
from bitdistiller.provenance import environment
from bitdistiller.reasoning.decoding import Prompt, Sampling
from bitdistiller.reasoning.writing import Writer


class Decoders:
    """Three ways to continue ``rows`` prompts of ``shared`` common tokens and ``own`` of their own."""

    def __init__(self, name: str, rows: int, shared: int, own: int, new: int):
        self.loaded, self.new = load_model(name), new
        self.loaded.model.generation_config.eos_token_id = None
        high = self.loaded.model.config.vocab_size
        self.common = torch.randint(2, high, (1, shared))
        self.ids = torch.cat([self.common.expand(rows, -1), torch.randint(2, high, (rows, own))], dim=1)

    def ours(self) -> None:
        prompts = [Prompt(str(index), row) for index, row in enumerate(self.ids.tolist())]
        with tempfile.TemporaryDirectory() as journals:
            writer = Writer(self.loaded.model, self.loaded.tokenizer, 2**30, Path(journals), "benchmark")
            writer.write(prompts, Sampling(self.new), "ours")

    def generate(self) -> None:
        cache = DynamicCache(config=self.loaded.model.config)
        with inference(self.loaded.model):
            self.loaded.model(self.common, past_key_values=cache)
            cache.batch_repeat_interleave(len(self.ids))
            self._generate(past_key_values=cache)

    def whole(self) -> None:
        with inference(self.loaded.model):
            self._generate()

    def _generate(self, **rest) -> None:
        self.loaded.model.generate(
            self.ids,
            attention_mask=torch.ones_like(self.ids),
            max_new_tokens=self.new,
            do_sample=False,
            pad_token_id=0,
            **rest,
        )


def main() -> None:
    """Measure, print, and write the JSON that documents read."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--shared", type=int, default=900)
    parser.add_argument("--own", type=int, default=60)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/decode.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    decoders = Decoders(arguments.model, arguments.rows, arguments.shared, arguments.own, arguments.new)
    names = ("ours", "generate", "whole")
    found = {name: [] for name in names}
    for _ in range(arguments.repeats):
        for name in names:
            found[name].append(measured(getattr(decoders, name)))
    seconds = {name: statistics.median(s for s, _ in runs) for name, runs in found.items()}
    result = {
        "model": arguments.model,
        "rows": arguments.rows,
        "tokens": {"shared": arguments.shared, "own": arguments.own, "new": arguments.new},
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "memory_mib": {name: round(max(m for _, m in runs) / 2**20) for name, runs in found.items()},
        **{f"ours_over_{name}": round(seconds["ours"] / seconds[name], 3) for name in names[1:]},
        "environment": environment().model_dump(),
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "environment"}, indent=2))


if __name__ == "__main__":
    main()
