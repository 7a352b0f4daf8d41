"""Sampling: one token for each row of logits, natively or on a device; both follow the reference to the bit."""

from __future__ import annotations

from tokenweave.sampling.compiled import native_sample
from tokenweave.sampling.device import DeviceSampler
from tokenweave.sampling.reference import mix64, reference_sample
from tokenweave.sampling.row import SampledRow, SamplingRow

__all__ = ["DeviceSampler", "SampledRow", "SamplingRow", "mix64", "native_sample", "reference_sample"]
