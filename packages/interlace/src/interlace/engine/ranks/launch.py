"""Launching: from a configuration to a group of ranks that executes batches.

Where the ranks are:
- `null`: one rank, the caller's own process.
- `shm`: rank 0 in the caller's process, the others as processes of this host, joined by shared memory.
- `thread`: every rank a thread of the caller's process.
- `torch`: a torch.distributed group. Under torchrun (or anything that sets its variables) each rank is a process
  that somebody else started, on any host; otherwise as for `shm`, over gloo on this host. On GPUs, one for each rank,
  it is over nccl, or by fused kernels over symmetric memory: `nccl` and `symm_mem` name them, `auto` chooses.

Rank processes are started before torch is imported here, so that all ranks load at the same time.
"""

from __future__ import annotations

import logging
import os
import socket
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from emucxl.shared_memory import empty_segment_fd
from interlace.cache.recorder import check_recordable
from interlace.engine.config import OF_GPUS, EngineConfig
from interlace.engine.ranks.device import check_each_has_one, resolve_device
from interlace.engine.ranks.processes import FAILURE_REPORT_S, RankProcesses, RankSpec
from interlace.errors import EngineError, RankFailed
from interlace.models.sources import load_model, resolve

if TYPE_CHECKING:
    from emucxl.links import Link
    from emucxl.shared_memory import SharedSegment
    from interlace.engine.ranks.group import RankGroup, StartedRanks
    from tokenweave.communicators import Communicator

_log = logging.getLogger(__name__)


def start(config: EngineConfig) -> RankGroup:
    """Start every rank that this process is to start, load the model, and return rank 0's handle on them.

    Under torchrun, on ranks other than 0, this serves rank 0 until it is done and then ends the process.

    Raises:
        ModelError: the model cannot be found or read.
        EngineError: the configuration does not fit the model, the machine or the group.
        RankFailed: another rank could not load its part.
        BlockTraceError: the block trace cannot be recorded where the configuration says.
    """
    config = replace(config, device=resolve_device(config))
    kind = resolve_communicator(config)
    if config.device == "cuda" and kind == "torch":
        check_each_has_one(config.tp)
    if kind == "torchrun":
        return _start_under_torchrun(config)
    if config.record_block_trace is not None:
        check_recordable(os.fspath(config.record_block_trace))  # before a model is loaded in vain
    config = replace(config, model=str(resolve(config.model)))
    if kind == "thread":
        return _start_threads(config)
    return _start_processes(config, kind)


def resolve_communicator(config: EngineConfig) -> str:
    """Returns the channel between the ranks: `null`, `shm`, `thread`, `torch`, or `torchrun` where that started them.

    Raises:
        EngineError: the configuration contradicts itself or the group that torchrun made.
    """
    from tokenweave.environment import torchrun_world_size

    world_size = torchrun_world_size()
    is_of_torch = config.communicator in ("auto", "torch", *OF_GPUS)
    if is_of_torch and world_size is not None and world_size > 1:
        if config.tp not in (1, world_size):
            raise EngineError(
                f"got tp={config.tp} in a group of {world_size} ranks, as WORLD_SIZE says; leave tp out or set it to "
                f"{world_size}, or unset RANK and WORLD_SIZE if they are left over from an earlier run"
            )
        return "torchrun"
    if config.tp == 1:
        if config.link is not None:
            raise EngineError(
                f"got link={config.link!r} with tp=1; one rank has no other to be linked to: raise tp or leave link out"
            )
        return "null"
    if config.communicator == "null":
        raise EngineError(
            f"got communicator='null' with tp={config.tp}; it joins one rank: use 'auto' or 'shm'"
        )
    if config.communicator in OF_GPUS or (config.communicator == "auto" and config.device == "cuda"):
        return "torch"
    return "shm" if config.communicator == "auto" else config.communicator


def _start_processes(config: EngineConfig, kind: str) -> RankGroup:
    """Rank 0 here, the others as processes of this host."""
    with ExitStack() as until_started, ExitStack() as until_closed:
        segment = until_closed.enter_context(_shared_segment(config)) if kind == "shm" else None
        symmetric_fd = _symmetric_fd(until_started) if kind == "shm" else None
        ports = [until_started.enter_context(port) for port in _ports(config)]
        specs = _specs(config, kind, segment, symmetric_fd, [port.fd for port in ports])
        processes = RankProcesses(specs[1:])
        until_closed.callback(processes.close)
        from interlace.engine.ranks.connect import connect

        communicator = connect(specs[0], segment, watch=processes.raise_failure)
        group = _load(config, communicator, processes)
        group.on_close(until_closed.pop_all())
        return group


def _symmetric_fd(until_started: ExitStack) -> int:
    """An empty segment for activations. Whoever fills or attaches it keeps a descriptor of its own."""
    fd = empty_segment_fd("interlace-activations")
    until_started.callback(os.close, fd)
    return fd


def _ports(config: EngineConfig) -> list[Link]:
    """Each rank's port, where a link is modelled."""
    link = config.link_spec
    return [link.new_port() for _ in range(config.tp)] if link is not None and config.tp > 1 else []


def _start_threads(config: EngineConfig) -> RankGroup:
    """Every rank a thread of this process."""
    from interlace.engine.ranks.connect import behind_link, kernels_for
    from interlace.engine.ranks.threads import RankThreads
    from tokenweave.communicators.thread import thread_group

    threads = thread_group(config.tp, timeout_s=config.timeout_s)
    group = [behind_link(communicator, config) for communicator in threads]
    for communicator in group:
        communicator.kernels = kernels_for(config, config.tp, communicator.rank)
    return _load(config, group[0], RankThreads(config, group[1:]))


def _start_under_torchrun(config: EngineConfig) -> RankGroup:
    """Rank 0 gets its handle; every other rank serves it and then ends the process."""
    from interlace.engine.ranks.torchrun import announce
    from tokenweave.environment import (
        torchrun_environment,
        torchrun_local_rank,
        torchrun_local_world_size,
    )

    announce(torchrun_environment(), config.timeout_s)  # before torch is imported, and anybody waited for
    from interlace.engine.ranks.connect import behind_link, connect_by_torch, kernels_for
    from interlace.engine.ranks.follow import follow

    ranks_on_host = torchrun_local_world_size()
    kernels = kernels_for(config, ranks_on_host, torchrun_local_rank())
    inner = connect_by_torch(config, torchrun_environment(), kernels, ranks_on_host)
    communicator = behind_link(inner, config)
    if communicator.rank == 0:
        return _load(config, communicator, None, ranks_on_host)
    follow(config, communicator, ranks_on_host)
    raise SystemExit(0)


def _load(
    config: EngineConfig,
    communicator: Communicator,
    others: StartedRanks | None,
    ranks_on_host: int | None = None,
) -> RankGroup:
    """Load rank 0's shard and meet the other ranks; if one of them fails first, say which."""
    from interlace.engine.ranks.group import RankGroup
    from interlace.engine.ranks.runner import Runner
    from tokenweave.errors import CommunicatorTimeout, RankError

    if others is not None:
        others.on_failure(lambda _, reason: communicator.abort(reason))
    runner = None
    try:
        model = load_model(config.model)
        runner = Runner(config, model, communicator, ranks_on_host or config.tp)
        for notice in (*model.weights.notices, *runner.notices):  # the other ranks have the same to say
            _log.warning(notice)
        return RankGroup(runner, model.tokenizer, others, model.sampling_defaults)
    except BaseException as error:
        is_of_another = isinstance(error, RankError | CommunicatorTimeout)
        known = others.wait_for_failure(FAILURE_REPORT_S) if others is not None and is_of_another else None
        with suppress(Exception):
            communicator.abort("rank 0 could not load the model")
        with suppress(Exception):
            (runner or communicator).close()  # a runner has threads of its own, and closes the communicator
        if not is_of_another:
            raise
        failed = known or (getattr(error, "rank", None), str(error))
        raise RankFailed(failed[1], failed[0]) from error


def _shared_segment(config: EngineConfig) -> SharedSegment:
    from emucxl.shared_memory import SharedSegment
    from tokenweave.communicators.shm_abi import segment_bytes

    return SharedSegment.create("interlace", segment_bytes(config.tp))


def _specs(
    config: EngineConfig,
    kind: str,
    segment: SharedSegment | None,
    symmetric_fd: int | None,
    link_fds: list[int],
) -> list[RankSpec]:
    """Returns the specification of each rank, rank 0 included."""
    port = _free_port() if kind == "torch" else 0
    return [
        RankSpec(
            rank=rank,
            size=config.tp,
            communicator=kind,
            config=asdict(config),
            segment_fd=segment.fd if segment else None,
            segment_size_bytes=segment.size_bytes if segment else 0,
            symmetric_fd=symmetric_fd,
            link_fd=link_fds[rank] if link_fds else None,
            master_port=port,
        )
        for rank in range(config.tp)
    ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
