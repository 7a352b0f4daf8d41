"""How the ranks of a torch group find each other, where they keep what they tell each other, and how they part."""

from __future__ import annotations

import atexit
import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store, TCPStore

from tokenweave.communicators.bulletin import SLICE_S, meet
from tokenweave.communicators.waits import first_line
from tokenweave.environment import have_nccl_spare_the_process
from tokenweave.errors import CommunicatorError, CommunicatorTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenweave.environment import TorchrunEnvironment


def join(
    where: TorchrunEnvironment, backend: str, timeout_s: float, watch: Callable[[], None] | None
) -> Store:
    """Initialises torch.distributed with the ranks of `where`; returns the store for what they tell each other."""
    timeout = timedelta(seconds=timeout_s)
    prefix = f"tokenweave/{where.attempt}"
    store = TCPStore(
        where.master_addr,
        where.master_port,
        is_master=where.rank == 0 and not where.store_is_hosted,
        timeout=timeout,
        wait_for_workers=False,
    )
    groups = PrefixStore(prefix, store)
    # Here and not in torch, which counts a group that failed to meet and would look for the next elsewhere.
    meet(groups, where, timeout_s, watch)
    have_nccl_spare_the_process()
    # So that `wait_for`, which can name a rank, is the first to give up. nccl's timeout is for a host that stands still
    # in a launch because too much is queued behind what hangs; it looks at no call that a graph replays.
    group_timeout = 2 * timeout if "nccl" in backend else timeout
    dist.init_process_group(
        backend, store=groups, rank=where.rank, world_size=where.world_size, timeout=group_timeout
    )
    # A connection of its own: whoever aborts must not queue behind a rank that waits in the store.
    board = TCPStore(where.master_addr, where.master_port, is_master=False, timeout=timeout)
    return PrefixStore(prefix, board)


@contextmanager
def forgotten_on_failure(where: TorchrunEnvironment, timeout_s: float) -> Iterator[None]:
    """Has torch forget a group that fails to form in this block, and says who could not meet whom."""
    try:
        yield
    except CommunicatorError:
        _forget_groups()
        raise
    except RuntimeError as error:
        _forget_groups()
        raise CommunicatorTimeout(
            f"rank {where.rank} could not meet the other {where.world_size - 1} at "
            f"{where.master_addr}:{where.master_port} within {timeout_s:g} s: {first_line(error)}"
        ) from error


def _forget_groups() -> None:
    """Has torch forget its groups and the one that failed to form: the next has to get the same name everywhere.

    torch counts groups in each process, and starts anew only when a default group that did form is destroyed.
    """
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    dist.destroy_process_group()


def default_group() -> dist.ProcessGroup:
    """The default group of torch.distributed.

    Raises:
        CommunicatorError: there is none.
    """
    group = dist.group.WORLD
    if group is None:
        raise CommunicatorError("torch.distributed has no default group")
    return group


def serves_cpu(group: dist.ProcessGroup) -> bool:
    """Whether tensors in the host's memory can go over `group`: not over one of nccl alone."""
    try:
        group._get_backend(torch.device("cpu"))
    except RuntimeError:
        return False
    return True


def nccl_of(group: dist.ProcessGroup) -> Any | None:
    """The backend by which `group` serves CUDA tensors, if it is nccl: then calls on them only queue work."""
    try:
        backend = group._get_backend(torch.device("cuda"))
    except RuntimeError:  # none does
        return None
    return backend if backend.name() == "nccl" else None


def default_store() -> Store:
    """The default group's store, for which torch has no public name."""
    from torch.distributed.distributed_c10d import _get_default_store

    store: Store = _get_default_store()
    return store


def own_store(store: Store, group: dist.ProcessGroup) -> Store:
    """The part of `store` that belongs to the communicator being made on `group`, the same on every rank.

    Ranks make a group's communicators in the same order, so that each rank's count of them tells them apart.
    """
    of_group = PrefixStore(f"tokenweave/{group.group_name}", store)
    return PrefixStore(str(of_group.add(f"made/{group.rank()}", 1)), of_group)


def end_later(groups: list[Any], unfinished: list[dist.Work]) -> None:
    """Drops `groups` once their work has ended, which no peer answers: by their timeout, or by the peers' end.

    gloo knows no abort, and its groups wait for their work when they go, so that nobody should wait for them.
    """

    def end() -> None:
        while not all(work.is_completed() for work in unfinished):
            time.sleep(SLICE_S)
        with _ending:
            groups.clear()

    threading.Thread(target=end, name="end of a failed group", daemon=True).start()


_ending = threading.Lock()  # not in the middle of the interpreter's exit, which ends threads that are in gloo
atexit.register(_ending.acquire)
