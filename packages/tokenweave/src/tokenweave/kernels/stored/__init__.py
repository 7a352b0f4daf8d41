"""Stored weights: matrices in the block formats of GGUF files, multiplied as they are."""

from __future__ import annotations

from tokenweave.kernels.stored.dequantise import dequantise
from tokenweave.kernels.stored.formats import FORMATS, QuantFormat
from tokenweave.kernels.stored.quantise import quantise
from tokenweave.kernels.stored.weight import StoredWeight

__all__ = ["FORMATS", "QuantFormat", "StoredWeight", "dequantise", "quantise"]
