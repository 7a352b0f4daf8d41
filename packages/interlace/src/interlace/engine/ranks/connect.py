"""Connecting: the communicator of one rank, from what the rank was told."""

from __future__ import annotations

from collections.abc import Callable

import torch

from emucxl import resources
from emucxl.links import Link
from emucxl.shared_memory import SharedSegment
from interlace.engine.config import EngineConfig
from interlace.engine.ranks.device import device_of_rank
from interlace.engine.ranks.processes import RankSpec
from interlace.errors import EngineError
from tokenweave.communicators import Communicator, LinkedCommunicator
from tokenweave.environment import TorchrunEnvironment
from tokenweave.errors import CommunicatorError
from tokenweave.kernels import Kernels, make_kernels


def connect(
    spec: RankSpec, segment: SharedSegment | None, watch: Callable[[], None] | None = None
) -> Communicator:
    """Joins the group that `spec` describes, as its rank. A shm group meets in `segment`.

    `watch` is called while other ranks are missing, and may raise.
    """
    inner = _connect(spec, segment, watch)
    if spec.link_fd is None:
        return inner
    return LinkedCommunicator(inner, Link.attach(spec.link_fd))


def behind_link(inner: Communicator, config: EngineConfig) -> Communicator:
    """`inner` behind a port of its own, where `config` has a link modelled."""
    link = config.link_spec
    return inner if link is None or inner.size == 1 else LinkedCommunicator(inner, link.new_port())


def _connect(spec: RankSpec, segment: SharedSegment | None, watch: Callable[[], None] | None) -> Communicator:
    config = spec.engine_config()
    kernels = kernels_for(config, ranks_on_host=spec.size, local_rank=spec.rank)
    if segment is not None:
        from tokenweave.communicators.shm import ShmCommunicator

        return ShmCommunicator(
            segment,
            spec.rank,
            spec.size,
            kernels=kernels,
            timeout_s=config.timeout_s,
            symmetric_fd=spec.symmetric_fd,
        )
    if spec.communicator == "torch":
        where = TorchrunEnvironment(spec.rank, spec.size, "127.0.0.1", spec.master_port)
        return connect_by_torch(config, where, kernels, spec.size, watch)
    from tokenweave.communicators.null import NullCommunicator

    return NullCommunicator(kernels=kernels, timeout_s=config.timeout_s)


def connect_by_torch(
    config: EngineConfig,
    where: TorchrunEnvironment,
    kernels: Kernels,
    ranks_on_host: int,
    watch: Callable[[], None] | None = None,
) -> Communicator:
    """Joins the torch.distributed group at `where`: over gloo, or as ranks on GPUs are joined best.

    Raises:
        EngineError: the GPUs of the ranks cannot be joined as `config` says.
    """
    if config.device == "cuda":
        from tokenweave.communicators.gpus import connect_gpus

        choice = "nccl" if config.communicator == "torch" else config.communicator
        if kernels.device.type == "cuda":  # libraries that look for the current device find this rank's
            torch.cuda.set_device(kernels.device)
        try:
            return connect_gpus(
                where,
                kernels,
                choice=choice,
                ranks_on_host=ranks_on_host,
                timeout_s=config.timeout_s,
                watch=watch,
            )
        except CommunicatorError as error:
            raise EngineError(f"got communicator={config.communicator!r}: {error}") from error
    from tokenweave.communicators.torch import TorchCommunicator

    return TorchCommunicator.join(
        where,
        kernels=kernels,
        timeout_s=config.timeout_s,
        check_calls=False,  # one plan makes them all
        watch=watch,
    )


def attach(spec: RankSpec) -> SharedSegment | None:
    """The segment that a rank process was handed, if its group meets in one."""
    if spec.segment_fd is None:
        return None
    return SharedSegment.attach(spec.segment_fd, spec.segment_size_bytes)


def kernels_for(config: EngineConfig, ranks_on_host: int, local_rank: int = 0) -> Kernels:
    """Returns a rank's kernels: on its GPU, or on its share of the granted cores unless `config` sets a number.

    `config.device` has been resolved: "auto" is the CPU here.
    """
    threads = config.threads or max(1, resources.num_threads() // ranks_on_host)
    if config.device != "cuda":
        return make_kernels(config.kernels, threads)
    name = "cuda" if config.kernels == "auto" else config.kernels
    return make_kernels(name, threads, device_of_rank(local_rank))
