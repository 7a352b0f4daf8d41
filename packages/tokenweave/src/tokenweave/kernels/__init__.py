"""Kernels: the arithmetic of a decoder layer, each beside its reference and tolerance."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from tokenweave import native
from tokenweave.environment import wanted_isa
from tokenweave.errors import KernelError
from tokenweave.kernels.arguments import AttentionBatch, AttentionLayer, ResidualNorms
from tokenweave.kernels.base import Kernels
from tokenweave.kernels.compiled import NativeKernels
from tokenweave.kernels.lazy import LazyStoredWeight, LazyWeight, join
from tokenweave.kernels.paging import BLOCK_SIZE, blocks_for, slots_of
from tokenweave.kernels.reference import ReferenceKernels
from tokenweave.kernels.stored import FORMATS, QuantFormat, StoredWeight, dequantise, quantise
from tokenweave.kernels.values import HeadLayout, PackedLinear, Tolerance

__all__ = [
    "BLOCK_SIZE",
    "FORMATS",
    "AttentionBatch",
    "AttentionLayer",
    "HeadLayout",
    "Kernels",
    "LazyStoredWeight",
    "LazyWeight",
    "NativeKernels",
    "PackedLinear",
    "QuantFormat",
    "ReferenceKernels",
    "ResidualNorms",
    "StoredWeight",
    "Tolerance",
    "blocks_for",
    "dequantise",
    "join",
    "make_kernels",
    "quantise",
    "slots_of",
]


def make_kernels(name: str = "auto", threads: int = 1, device: str | torch.device | None = None) -> Kernels:
    """The kernels called `name`: "native", "reference", "cuda", or "auto", native where this machine runs them.

    Those called "cuda" compute on a CUDA `device`, by default the current one, the reference ones on any of torch, the
    others on the CPU.

    Raises:
        KernelError: there are no such kernels, or they cannot run here; the message says why.
    """
    if threads < 1:
        raise KernelError(f"threads is {threads}, expected at least 1")
    if name == "cuda":
        return _make_cuda_kernels("cuda" if device is None else device)
    if device is not None and torch.device(device).type != "cpu":
        if name != "reference":
            raise KernelError(
                f'{name!r} kernels compute on the CPU, got device {device}: take "reference" or "cuda" ones'
            )
        return ReferenceKernels(threads, device)
    asked_for = name == "native" or (
        name == "auto" and wanted_isa() is not None
    )  # then not having it is an error
    if asked_for or (name == "auto" and native.unavailable_reason() is None):
        return NativeKernels(threads)
    if name in ("auto", "reference"):
        return ReferenceKernels(threads)
    raise KernelError(f'kernels are called "auto", "native", "reference" or "cuda", got {name!r}')


def _make_cuda_kernels(device: str | torch.device) -> Kernels:
    if find_spec("triton") is None:
        raise KernelError('kernels "cuda" cannot be had here: triton is not installed: pip install triton')
    from tokenweave.kernels.cuda.backend.cuda_kernels import CudaKernels

    return CudaKernels(device)
