"""Kernels: the arithmetic of a decoder layer, each beside its reference and tolerance."""

from __future__ import annotations

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


def make_kernels(name: str = "auto", threads: int = 1, device: str | torch.device = "cpu") -> Kernels:
    """The kernels called `name`: "native", "reference", or "auto", native where this machine runs them.

    The reference ones compute on any `device` of torch, the others on the CPU.
    """
    if threads < 1:
        raise KernelError(f"threads is {threads}, expected at least 1")
    if torch.device(device).type != "cpu":
        if name != "reference":
            raise KernelError(
                f'{name!r} kernels compute on the CPU, got device {device}: take "reference" ones'
            )
        return ReferenceKernels(threads, device)
    asked_for = name == "native" or (
        name == "auto" and wanted_isa() is not None
    )  # then not having it is an error
    if asked_for or (name == "auto" and native.unavailable_reason() is None):
        return NativeKernels(threads)
    if name in ("auto", "reference"):
        return ReferenceKernels(threads)
    raise KernelError(f'kernels are called "auto", "native" or "reference", got {name!r}')
