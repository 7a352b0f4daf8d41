"""Sampling as operations of torch, on whatever device the logits are; with the bits of the reference.

`sampler` has the class, `slots` the tokens that penalties count. `parameters` is what goes over, `sampled` what comes
back. `rules`, `search` and `arithmetic` compute what the reference does.
"""

from __future__ import annotations

from tokenweave.sampling.device.parameters import Features
from tokenweave.sampling.device.sampled import DeviceSampled, Fetched
from tokenweave.sampling.device.sampler import DeviceSampler
from tokenweave.sampling.device.slots import TokenSlots

__all__ = ["DeviceSampled", "DeviceSampler", "Features", "Fetched", "TokenSlots"]
