"""The check that ranks call alike: each names its call to the others before it makes it."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING

import torch

from tokenweave.errors import CollectiveMismatch

if TYPE_CHECKING:
    from tokenweave.communicators.host_group import HostGroup
    from tokenweave.communicators.waits import Waits

NAME_BYTES = 128


def compare_calls(call: str, rank: int, group: HostGroup, waits: Waits) -> None:
    """Returns once every rank has named the same `call`; `waits` keeps the error where one has not.

    Raises:
        CollectiveMismatch: a rank called something else.
    """
    text = bytearray(call.encode().ljust(NAME_BYTES)[:NAME_BYTES])
    texts = group.gather_bytes(torch.frombuffer(text, dtype=torch.uint8), call).view(-1, NAME_BYTES)
    calls = [bytes(row.tolist()).decode().rstrip() for row in texts]
    for other, named in enumerate(calls):
        if named != calls[rank]:
            waits.failure = CollectiveMismatch(
                f"rank {rank} called {call} where rank {other} called {named}; "
                "every rank must make the same calls in order"
            )
            raise copy(waits.failure)
