"""Sampling: one token for each row of logits, natively, beside the reference that it follows to the bit."""

from __future__ import annotations

from tokenweave.sampling.compiled import native_sample
from tokenweave.sampling.reference import mix64, reference_sample
from tokenweave.sampling.row import SampledRow, SamplingRow

__all__ = ["SampledRow", "SamplingRow", "mix64", "native_sample", "reference_sample"]
