"""Messages: what every rank has to say, told to every rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenweave.communicators import Communicator


def messages_of_all(communicator: Communicator, own: bytes, idle: bool = False) -> list[bytes]:
    """Every rank's message, in rank order, on every rank. A collective call, over the channel of commands.

    With `idle` a rank is waited for however long it takes, and otherwise for `timeout_s`.
    """
    return [
        communicator.broadcast_bytes(own if rank == communicator.rank else None, root=rank, idle=idle)
        for rank in range(communicator.size)
    ]
