"""Seconds that work takes: on GPUs from their data sheets and an assumed efficiency, here from a measurement.

What an accelerator reaches of its peak cannot be known from here, so ``efficiency`` is an assumption and an option.
Its default of 0.4 is what Llama 3's authors report for H100 in bf16, 38 to 43 % (arXiv 2407.21783, table 4), with
PaLM's 46 % (arXiv 2204.02311, table 3) above it. Those shares include all that is no matrix product, which is counted
on top here, so times lean to the long side. Memory is taken to stream at 80 % of its peak. A product of few rows is
bound by reading its weights, a small one by its launch; work and launches overlap, so whichever is longer counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bitdistiller.plan.work import Work

EFFICIENCY = 0.4
STREAMED = 0.8  # of peak memory bandwidth
LAUNCH = 6e-6  # seconds from one kernel of a stream to the next, started from Python
FP32_SHARE = 1 / 16  # of the bf16 peak, products in fp32 on CUDA cores (A100: 19.5 of 312; H100: 67 of 989)
CONTEXT = 0.6e9  # bytes of CUDA's context and kernels
GPU_STAGE = 20.0  # seconds of a stage's imports and of moving weights to the device

# Bytes through memory for one unit of each pass: every temporary of the code is written and read once.
_BYTES = {
    "activations": 2.5,
    "activations, backward": 4.0,
    "rounded weights": 62,
    "searched weights": 120,
    "summarized weights": 400,
    "updated parameters": 36,
    "loss logits": 100,
    "scored logits": 20,
    "compared logits": 70,
    "sampled logits": 40,
    "evaluated logits": 30,
    "moved bytes": 2,
    "cached attention": 1,
}
# Kernels: of a layer forward and back, and of one candidate of the clipping search over 2**18 weights.
_KERNELS = {"layer calls": 45, "layer steps": 110, "written tokens": 60, "searched weights": 16 / 2**18}
_ATTENTION = {
    "plain attention": 0.5,
    "plain attention, backward": 0.5,
    "fused attention": 1,
    "fused attention, backward": 1,
}
_STORED_PER_SECOND = 1e9


class Machine(Protocol):
    """What turns work into seconds."""

    name: str

    def seconds(self, work: Work) -> float:
        """Time of ``work`` on one device."""


@dataclass(frozen=True)
class Accelerator:
    """A GPU by its data sheet: dense bf16 FLOP/s, bytes a second, bytes of memory, bytes a second to its neighbours."""

    name: str
    peak: float
    bandwidth: float
    memory: float
    link: float
    source: str
    efficiency: float = EFFICIENCY

    def seconds(self, work: Work) -> float:
        """Time of ``work``: products, then passes at the bandwidth of memory, or launches if they take longer."""
        stream = self.bandwidth * STREAMED
        busy = sum(
            count
            * max(2 * rows * inner * out / (self.peak * self.efficiency), 2 * self._read(rows, inner, out) / stream)
            for (rows, inner, out), count in work.products.items()
        )
        amounts = work.passes
        busy += sum(amounts.get(name, 0) / (self.peak * self.efficiency * share) for name, share in _ATTENTION.items())
        busy += amounts.get("fp32 products", 0) / (self.peak * FP32_SHARE * self.efficiency)
        busy += sum(amounts.get(name, 0) * size / stream for name, size in _BYTES.items())
        kernels = sum(amounts.get(name, 0) * count for name, count in _KERNELS.items())
        fixed = amounts.get("stages", 0) * GPU_STAGE + amounts.get("stored bytes", 0) / _STORED_PER_SECOND
        return max(busy, kernels * LAUNCH) + fixed

    @staticmethod
    def _read(rows: int, inner: int, out: int) -> int:
        return inner * out + rows * (inner + out)

    def exchange(self, bytes_a_device: float) -> float:
        """Seconds in which a device sends or receives so many bytes."""
        return bytes_a_device / (self.link * STREAMED)


A100 = Accelerator(
    "A100",
    312e12,
    2.039e12,
    80e9,
    300e9,
    "NVIDIA A100 80GB SXM data sheet (BF16 without sparsity; NVLink 600 GB/s both ways)",
)
H100 = Accelerator(
    "H100",
    989e12,
    3.35e12,
    80e9,
    450e9,
    "NVIDIA H100 SXM data sheet (BF16 without sparsity; NVLink 900 GB/s both ways)",
)


@dataclass(frozen=True)
class Host:
    """This machine, as ``calibrate`` measured it.

    Attributes:
        rates: FLOP/s of matrix products by the least of their three sizes, which decides it.
        each: seconds of one unit of every pass.
        runtime: bytes that a process holds before it begins.
    """

    rates: tuple[tuple[int, float], ...]
    each: Mapping[str, float]
    runtime: float
    name: str = "this machine"

    def seconds(self, work: Work) -> float:
        """Time of ``work`` on the threads that were measured."""
        # Rates are measured with weights in the cache, where those of a whole model are not: they are read anew.
        products = sum(
            count * (2 * rows * inner * out / self.rate(rows, inner, out) + inner * out * self.each["moved bytes"])
            for (rows, inner, out), count in work.products.items()
        )
        return products + sum(amount * self.each[name] for name, amount in work.passes.items())

    def rate(self, rows: int, inner: int, out: int) -> float:
        """FLOP/s of a product: between the nearest measured sizes, both axes logarithmic."""
        sizes, rates = np.log(np.array(self.rates)).T
        return float(np.exp(np.interp(np.log(min(rows, inner, out)), sizes, rates)))
