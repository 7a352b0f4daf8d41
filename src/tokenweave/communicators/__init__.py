"""Communicators: how the ranks of one tensor-parallel group exchange tensors.

One contract (`base.Communicator`), one file per backend. May import `emucxl`, torch and `tokenweave.kernels`.
"""

from tokenweave.communicators.base import Communicator
from tokenweave.communicators.null import NullCommunicator
from tokenweave.communicators.thread import ThreadCommunicator, thread_group

__all__ = ["Communicator", "NullCommunicator", "ThreadCommunicator", "thread_group"]
