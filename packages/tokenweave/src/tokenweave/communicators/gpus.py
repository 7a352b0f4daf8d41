"""How ranks on GPUs are joined: over nccl, and by fused kernels where every rank reaches every other's memory.

All ranks must come to the same choice, so each tells the others what it found before any of them goes on.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch._C._distributed_c10d import PrefixStore, Store

from tokenweave.communicators.available import between_gpus, nccl_reason
from tokenweave.communicators.base import DEFAULT_TIMEOUT_S
from tokenweave.communicators.bulletin import meet
from tokenweave.communicators.rendezvous import default_group, forgotten_on_failure, join
from tokenweave.communicators.symm_mem import SymmMemCommunicator
from tokenweave.communicators.symmetric_memory import SymmetricMemory, TorchSymmetricMemory
from tokenweave.communicators.torch import TorchCommunicator
from tokenweave.communicators.waits import first_line
from tokenweave.environment import may_ranks_share_gpus
from tokenweave.errors import CommunicatorError

if TYPE_CHECKING:
    from tokenweave.environment import TorchrunEnvironment
    from tokenweave.kernels import Kernels

CHOICES = ("auto", "nccl", "symm_mem")
Exchange = Callable[[str, str], list[str]]  # a topic, and this rank's word: every rank's, in rank order


def connect_gpus(
    where: TorchrunEnvironment,
    kernels: Kernels,
    *,
    choice: str = "auto",
    ranks_on_host: int,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    watch: Callable[[], None] | None = None,
) -> TorchCommunicator:
    """Joins the ranks of `where`, each on the GPU of its `kernels`, as `TorchCommunicator.connect` does.

    choice: "nccl", "symm_mem", or "auto", which is symm_mem where the ranks are of one host and all of them can have
    it, and otherwise nccl. Calls are not compared. gloo stands for nccl where Triton interprets kernels on the CPU, and
    where ranks may share a GPU (`environment.may_ranks_share_gpus`).

    Raises:
        CommunicatorError: there is no nccl, two ranks have one GPU, or symm_mem is chosen and a rank cannot have it.
        CommunicatorTimeout: not all ranks came within `timeout_s`.
        RankError: nccl could not connect them.
        Whatever `watch` raised.
    """
    if choice not in CHOICES:
        raise CommunicatorError(f"got choice={choice!r}; expected one of {', '.join(CHOICES)}")
    device = kernels.device
    may_share = may_ranks_share_gpus()
    backend = "nccl" if device.type == "cuda" and not may_share else "gloo"
    if backend == "nccl" and (reason := nccl_reason()):
        raise CommunicatorError(f"rank {where.rank} cannot have nccl: {reason}")
    with forgotten_on_failure(where, timeout_s):
        store = join(where, backend, timeout_s, watch)
        ask = partial(_exchange, store, where, timeout_s, watch)
        if not may_share:
            _check_devices(ask("devices", _identity_of(device)), where)
        memory = None if choice == "nccl" else _agree_on_memory(ask, choice, device, ranks_on_host)
        options: dict[str, Any] = {
            "store": store,
            "kernels": kernels,
            "timeout_s": timeout_s,
            "check_calls": False,
        }
        joined = (
            TorchCommunicator(**options) if memory is None else SymmMemCommunicator(memory=memory, **options)
        )
    if memory is None and backend == "nccl":
        joined.name = backend
    return joined.owning(watch)


def _exchange(
    store: Store,
    where: TorchrunEnvironment,
    timeout_s: float,
    watch: Callable[[], None] | None,
    topic: str,
    own: str,
) -> list[str]:
    """Every rank's word on `topic`, in rank order, the same on all ranks."""
    board = PrefixStore(f"gpus/{topic}", store)
    board.set(f"said/{where.rank}", own)
    meet(board, where, timeout_s, watch)
    return [board.get(f"said/{rank}").decode() for rank in range(where.world_size)]


def _identity_of(device: torch.device) -> str:
    """A GPU's own number, the same whatever a process calls it; nothing where Triton is interpreted."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""


def _check_devices(identities: list[str], where: TorchrunEnvironment) -> None:
    first: dict[str, int] = {}
    for rank, identity in enumerate(identities):
        if identity and first.setdefault(identity, rank) != rank:
            raise CommunicatorError(
                f"ranks {first[identity]} and {rank} have one GPU, and nccl joins ranks that have one each; start at "
                f"most as many ranks on a host as it has GPUs (got {where.world_size} in all)"
            )


def _agree_on_memory(
    ask: Exchange, choice: str, device: torch.device, ranks_on_host: int
) -> SymmetricMemory | None:
    """Symmetric memory, on all ranks or on none.

    Raises:
        CommunicatorError: symm_mem is the choice, and a rank cannot have it.
    """
    own = _reason_against(ranks_on_host)
    hosts = ask("hosts", socket.gethostname())
    if choice == "auto" and len(set(hosts)) > 1:
        return None
    memory = None
    if not (reasons := _given(ask("can have symmetric memory", own))):
        memory, own = _try_memory(device)
        reasons = _given(ask("has symmetric memory", own))
    if not reasons:
        return memory
    if choice == "symm_mem":
        raise CommunicatorError(
            f"symm_mem cannot be had: {reasons[0]}; use auto, which is nccl then, or nccl"
        )
    return None


def _reason_against(ranks_on_host: int) -> str:
    choice, why = between_gpus(ranks_on_host)
    return "" if choice == "symm_mem" else why


def _try_memory(device: torch.device) -> tuple[SymmetricMemory | None, str]:
    """Symmetric memory that a first allocation has shown to work; or the reason why it does not."""
    try:
        with torch.cuda.device(device):
            memory = TorchSymmetricMemory(default_group(), device)
            memory.allocate(1)
    except Exception as error:  # of CUDA's driver, of torch's store, of a torch that calls things otherwise
        return None, first_line(error) or type(error).__name__
    return memory, ""


def _given(reasons: list[str]) -> list[str]:
    return [f"rank {rank}: {reason}" for rank, reason in enumerate(reasons) if reason]
