"""The device's sampler as a function, like the native one; and what torch is asked for while something runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tokenweave.sampling import DeviceSampler, SampledRow, SamplingRow


def slots_of(sampler: DeviceSampler, rows: Sequence[SamplingRow]) -> list[int | None]:
    """A slot for each row that needs one, with the row's tokens."""
    return [sampler.slots.add(row.tokens, row.num_prompt) if row.has_penalties else None for row in rows]


def device_sample(logits: Tensor, rows: Sequence[SamplingRow]) -> list[SampledRow]:
    """What a sampler of its own, on the CPU, finds for `rows`."""
    sampler = DeviceSampler(max(1, logits.shape[-1]), len(rows), len(rows))
    return sampler.sample(logits, rows, slots_of(sampler, rows)).fetch().rows


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down the operations that run inside it, each with the shapes of what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[tuple[str, list[tuple[int, ...]]]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch would import its compiler for that: seconds, for what never compiles."""
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = function(*args, **(kwargs or {}))
        tensors = given if isinstance(given, tuple | list) else [given]
        shapes = [tuple(tensor.shape) for tensor in tensors if isinstance(tensor, torch.Tensor)]
        self.taken.append((function.overloadpacket.__name__, shapes))
        return given

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.taken}
