"""The probe: times a model's products in float32 and in bfloat16, on the kernels that will run them.

Prompts are bound by arithmetic and decoding by bytes, so both are timed: PROMPT_ROWS rows, and 1 and BATCH rows over
more weights than most caches hold. No model is read. The weights are slices of the model's matrices, all of one value:
products take the same time whatever is multiplied. Both dtypes work through the same bytes, in turns, so that neither
finds more of them in a cache, and the least time of each counts.

Takes 0.1 to 0.2 s (up to PATIENCE_S more while other programs disturb it), and little more memory than WEIGHT_BYTES.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from interlace.engine.dtypes.products import BATCH, Comparison, Products, ProductTimes
from tokenweave.kernels import Kernels, PackedLinear
from tokenweave.kernels.memory import lazy_zeros

DTYPES = (torch.float32, torch.bfloat16)
PROMPT_ROWS = 256
PROMPT_FLOPS = 0.5e9  # of a timed prompt, for each thread
WEIGHT_BYTES = 64 << 20  # that decoding reads
PANEL = 32  # outputs: a thread's least share of a product
PAGE_BYTES = 4096
FILLING = 0x3C  # of each byte: 0.0115 in bfloat16 and in float32
MOST_ROUNDS = 8
BUDGET_S, PATIENCE_S = 0.1, 0.5  # the second where other programs disturb
SETTLED = 1.1  # the least time and the one after it are no further apart
LEAST_S = 1e-9  # of what a coarse clock calls no time


class Layers:
    """A slice of a layer in one dtype, as often as it fits into the memory at hand, but once at least."""

    def __init__(self, kernels: Kernels, packed: list[PackedLinear], memory: Tensor) -> None:
        """The weights are the bytes of `memory`, in the layouts of `packed`."""
        self._kernels = kernels
        # A single thread's own time leaves out what other programs took; more threads have only the wall's in common.
        self._clock = time.thread_time if kernels.threads == 1 else time.perf_counter
        starts = range(0, memory.nbytes - _size_bytes(packed) + 1, _size_bytes(packed))
        self._weights = [weight for start in starts for weight in _placed(packed, memory[start:])]
        self._layer = self._weights[: len(packed)]
        self._inputs = {
            weight.k: torch.full((PROMPT_ROWS, weight.k), 0.5, dtype=weight.dtype) for weight in packed
        }

    def prompt_s(self) -> float:
        """Seconds for each weight and token of a prompt."""
        return self._time(self._layer, PROMPT_ROWS) / PROMPT_ROWS

    def step_s(self, num_seqs: int) -> float:
        """Seconds for each weight of a step that decodes."""
        return self._time(self._weights, num_seqs)

    def _time(self, weights: list[PackedLinear], num_rows: int) -> float:
        start = self._clock()
        for weight in weights:
            self._kernels.linear(self._inputs[weight.k][:num_rows], weight)
        return max(self._clock() - start, LEAST_S) / sum(weight.n * weight.k for weight in weights)


TIMERS: tuple[Callable[[Layers], float], ...] = (  # in the order of the fields of ProductTimes
    Layers.prompt_s,
    lambda layers: layers.step_s(1),
    lambda layers: layers.step_s(BATCH),
)


def compare(kernels: Kernels, products: Products) -> Comparison:
    """Times `products` of dense weights in both dtypes on `kernels`."""
    packed = [_packed_layer(kernels, products, dtype) for dtype in DTYPES]
    # A small model asks for no more than it takes itself.
    model_bytes = 2 * (products.layer_weights + products.head_weights)
    size_bytes = max(min(WEIGHT_BYTES, model_bytes), *map(_size_bytes, packed))
    memory = lazy_zeros([size_bytes], torch.uint8).fill_(FILLING)
    both = [Layers(kernels, layer, memory) for layer in packed]
    times = _timed([partial(timer, layers) for timer in TIMERS for layers in both])
    return Comparison(products, ProductTimes(*times[0::2]), ProductTimes(*times[1::2]))


def _timed(timers: Sequence[Callable[[], float]]) -> list[float]:
    """The least that each timer gives, in rounds of all, until none seems to have been disturbed each time."""
    seen: list[list[float]] = [[] for _ in timers]
    start = time.perf_counter()
    for turn in range(MOST_ROUNDS):
        for times, timer in zip(seen, timers, strict=True):
            times.append(timer())
            times.sort()
        elapsed_s = time.perf_counter() - start
        is_settled = turn > 0 and all(times[1] <= SETTLED * times[0] for times in seen)
        if elapsed_s > (BUDGET_S if is_settled else PATIENCE_S):
            break
    return [times[0] for times in seen]


def _packed_layer(kernels: Kernels, products: Products, dtype: torch.dtype) -> list[PackedLinear]:
    """As much of each matrix's outputs as makes a prompt take PROMPT_FLOPS for each thread."""
    wanted = PROMPT_FLOPS * kernels.threads / (2 * PROMPT_ROWS)
    share = wanted / sum(n * k for n, k in products.matrices)
    return [
        kernels.pack(torch.zeros(min(n, max(PANEL, round(n * share / PANEL) * PANEL)), k, dtype=dtype))
        for n, k in products.matrices
    ]


def _placed(packed: list[PackedLinear], memory: Tensor) -> list[PackedLinear]:
    """The weights with the first bytes of `memory`, which are enough, for their data."""
    placed, start = [], 0
    for weight in packed:
        data = memory[start : start + weight.data.nbytes].view(weight.data.dtype).view(weight.data.shape)
        placed.append(replace(weight, data=data))
        start += _whole_pages(weight.data.nbytes)
    return placed


def _size_bytes(packed: list[PackedLinear]) -> int:
    return sum(_whole_pages(weight.data.nbytes) for weight in packed)


def _whole_pages(size_bytes: int) -> int:
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES
