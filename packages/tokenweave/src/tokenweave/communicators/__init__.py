"""Communicators: how the ranks of one tensor-parallel group exchange tensors.

One contract (`base.Communicator`), one file per backend. May import `emucxl`, torch and `tokenweave.kernels`.
Names are loaded on first use, so that `shm_abi` can be had without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emucxl.lazy import lazy_names

if TYPE_CHECKING:
    from tokenweave.communicators.available import availability
    from tokenweave.communicators.base import Communicator
    from tokenweave.communicators.linked import LinkedCommunicator
    from tokenweave.communicators.null import NullCommunicator
    from tokenweave.communicators.shm import ShmCommunicator
    from tokenweave.communicators.shm_abi import segment_bytes
    from tokenweave.communicators.symm_mem import SymmMemCommunicator
    from tokenweave.communicators.thread import ThreadCommunicator, thread_group
    from tokenweave.communicators.torch import TorchCommunicator

__all__ = [
    "Communicator",
    "LinkedCommunicator",
    "NullCommunicator",
    "ShmCommunicator",
    "SymmMemCommunicator",
    "ThreadCommunicator",
    "TorchCommunicator",
    "availability",
    "segment_bytes",
    "thread_group",
]

_HOMES = {
    "Communicator": "base",
    "LinkedCommunicator": "linked",
    "NullCommunicator": "null",
    "ShmCommunicator": "shm",
    "SymmMemCommunicator": "symm_mem",
    "ThreadCommunicator": "thread",
    "TorchCommunicator": "torch",
    "availability": "available",
    "segment_bytes": "shm_abi",
    "thread_group": "thread",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
