"""This machine: where its wave tables are, what of their keys is its own, the row tile of its matrix products."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

import tokenweave
from emucxl import resources
from emucxl.bench import machine
from interlace.engine.weaving.table_key import key_of_shards
from interlace.environment import cache_directory
from interlace.models.shard import Shard
from tokenweave import native
from tokenweave.kernels import Kernels, NativeKernels
from tokenweave.kernels.cuda.devices import driver_version
from tokenweave.wave_table import TableKey

if TYPE_CHECKING:
    from interlace.models.config import ModelConfig

ROW_TILE = 12  # rows of a tile of the native matrix products: native/kernels/kernels.h of tokenweave
GPU_ROW_TILE = 128  # what the tiles of cuBLAS's products of many rows are, or are multiples of


def table_directory() -> Path:
    """Where `interlace tune` leaves its tables."""
    return cache_directory() / "tune"


class Facts(NamedTuple):
    """All that times depend on but for the model: three members of a `TableKey`."""

    machine: str
    kernels: str
    library: str


def table_key(
    config: ModelConfig, size: int, kernels: Kernels, dtype: torch.dtype, weights: str = "none"
) -> TableKey:
    """Returns the key of the wave table for this model, on `size` ranks of this machine with such kernels.

    `weights` is their name (`footprint.weights_name`): products with weights in blocks take other times.
    """
    facts = gpu_facts(kernels) if kernels.device.type == "cuda" else processor_facts(kernels)
    return key_of_shards(
        config,
        Shard.all_of(config, size),
        machine=facts.machine,
        kernels=facts.kernels + (f", {weights} weights" if weights != "none" else ""),
        library=facts.library,
        dtype=str(dtype).removeprefix("torch."),
        threads=kernels.threads,
    )


def processor_facts(kernels: Kernels) -> Facts:
    """Those of kernels that compute on the processor."""
    isa, build = (
        (kernels.isa, f" {native.build()}") if isinstance(kernels, NativeKernels) else (torch.__version__, "")
    )
    return Facts(
        f"{machine.cpu_model()}, {resources.num_threads()} cores",
        f"{kernels.name} {isa}",
        tokenweave.__version__ + build,
    )


def gpu_facts(kernels: Kernels) -> Facts:
    """Those of kernels on a GPU: torch brings the matrix products, Triton compiles the rest, the driver loads both."""
    import triton

    found = torch.cuda.get_device_properties(kernels.device)
    software = (
        f"torch {torch.__version__}, triton {triton.__version__}, driver {driver_version() or 'unknown'}"
    )
    return Facts(
        f"{found.name}, {found.multi_processor_count} SMs",
        f"{kernels.name} sm_{found.major}{found.minor}",
        f"{tokenweave.__version__}, {software}",
    )


def row_tile(kernels: Kernels) -> int:
    """Rows that the kernels' matrix products take at once."""
    if kernels.device.type == "cuda":
        return GPU_ROW_TILE
    return ROW_TILE if isinstance(kernels, NativeKernels) else 1
