"""The dtype of an engine: what it was told, or for `auto` the faster one for this model on this machine.

`auto` is bfloat16 on GPUs, and float32 where the kernels have no bfloat16 products. Elsewhere it is bfloat16 for
weights in blocks, whose products are of the same integers in both: what differs is attention and the cache, which have
half of the bytes. For dense weights both are measured, once (see `probe` and `kept`), and bfloat16 is taken unless jobs
would be slower with it (see `Comparison.slowdown`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

import tokenweave
from emucxl.bench import machine
from interlace.engine.dtypes import kept, probe
from interlace.engine.dtypes.products import Comparison, Products
from interlace.errors import EngineError
from interlace.models.matrix_reader import MADE
from interlace.models.shard import Shard
from tokenweave import native
from tokenweave.kernels import Kernels, NativeKernels

if TYPE_CHECKING:
    from interlace.models.weights import WeightSource
    from tokenweave.communicators import Communicator

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MULTIPLYING = ("avx512bf16", "amx")  # the instruction sets with products of bfloat16
_log = logging.getLogger(__name__)


def multiplies_bfloat16(kernels: Kernels) -> bool:
    """Whether `kernels` have instructions for products of bfloat16."""
    return isinstance(kernels, NativeKernels) and kernels.isa in MULTIPLYING


def compared(kernels: Kernels, products: Products) -> Comparison:
    """Both dtypes for `products` on these kernels, as it is kept, or else as measured now."""
    assert isinstance(kernels, NativeKernels)
    subject = kept.Subject(
        machine.cpu_model(),
        kernels.isa,
        f"{tokenweave.__version__} {native.build()}",
        kernels.threads,
        products,
    )
    return kept.load(subject) or kept.keep(subject, probe.compare(kernels, products))


def named(name: str, kernels: Kernels) -> torch.dtype:
    """The dtype called `name`. Raises EngineError where it is float16 and `kernels` are for CPUs."""
    if name == "float16" and kernels.name != "cuda" and kernels.device.type == "cpu":
        raise EngineError(
            f"dtype={name!r}: expected float32 or bfloat16 on the CPU: float16 is for device='cuda', and the kernels "
            f"here are the {kernels.name} ones"
        )
    return DTYPES[name]


def resolve(name: str, kernels: Kernels, products: Products) -> torch.dtype:
    """The dtype called `name`; of `auto`, the faster one."""
    if name != "auto":
        return named(name, kernels)
    if kernels.name == "cuda" or kernels.device.type == "cuda":
        return torch.bfloat16
    if not multiplies_bfloat16(kernels):
        return torch.float32
    if products.blocks is not None:
        return torch.bfloat16
    found = compared(kernels, products)
    _log.info("dtype %s: %s", found.faster, found.text)
    return DTYPES[found.faster]


def agree(
    name: str, quantize: str, source: WeightSource, kernels: Kernels, communicator: Communicator
) -> torch.dtype:
    """The dtype of all ranks. A collective call: rank 0 resolves `auto`, for its own part of the model."""
    if name != "auto":
        return named(name, kernels)
    own = None
    if communicator.rank == 0:
        shard = Shard.of(source.config, 0, communicator.size)
        products = Products.of(source.config, shard, blocks_of(quantize, source))
        own = str(resolve("auto", kernels, products)).removeprefix("torch.").encode()
    return DTYPES[communicator.broadcast_bytes(own, root=0, idle=True).decode()]


def blocks_of(quantize: str, source: WeightSource | None = None) -> str | None:
    """The format of blocks that an engine with `quantize` multiplies; None: its weights are dense."""
    if quantize == "none":
        return None
    stored = None if source is None else source.stored("layers.0.q", range(1))
    form = MADE.get(quantize) if stored is None else stored.format
    return None if form is None else form.name
