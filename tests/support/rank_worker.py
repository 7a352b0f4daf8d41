"""A rank as a process: joins the groups it is told to and runs programs on them. Started by `rank_groups`.

Messages are pickles with their length in front, over the socket whose descriptor is the only argument.
"""

from __future__ import annotations

import importlib
import os
import pickle
import socket
import struct
import sys
import warnings
from typing import Any

HEADER = struct.Struct("<Q")


def send(channel: socket.socket, message: object, fds: tuple[int, ...] = ()) -> None:
    content = pickle.dumps(message)
    socket.send_fds(channel, [HEADER.pack(len(content))], list(fds))
    channel.sendall(content)


def receive(channel: socket.socket) -> tuple[Any, list[int]]:
    head, fds, _, _ = socket.recv_fds(channel, HEADER.size, 4)
    if not head:
        raise EOFError("the other end is gone")
    (left,) = HEADER.unpack(head)
    parts = []
    while left:
        part = channel.recv(min(left, 1 << 20))
        if not part:
            raise EOFError("the other end is gone")
        parts.append(part)
        left -= len(part)
    return pickle.loads(b"".join(parts)), fds


def join(
    kind: str, rank: int, size: int, options: dict[str, Any], is_linked: bool, fds: list[int]
) -> tuple[Any, Any]:
    """Joins a group, behind the port that is the last of `fds` if it is linked.

    Returns the communicator, and the segment of a shm group, which stays open with it.
    """
    if not is_linked:
        return JOIN[kind](rank, size, options, fds)
    from emucxl.links import Link
    from tokenweave.communicators import LinkedCommunicator

    *fds, port_fd = fds
    port = Link.attach(port_fd)
    os.close(port_fd)
    inner, segment = JOIN[kind](rank, size, options, fds)
    return LinkedCommunicator(inner, port), segment


def join_shm(rank: int, size: int, options: dict[str, Any], fds: list[int]) -> tuple[Any, Any]:
    """Joins a shm group. A second descriptor is that of symmetric memory."""
    from emucxl.shared_memory import SharedSegment
    from tokenweave.communicators import ShmCommunicator, segment_bytes

    segment_fd, *symmetric_fds = fds
    segment = SharedSegment.attach(segment_fd, segment_bytes(size, options["slot_bytes"]))
    os.close(segment_fd)
    if not symmetric_fds:
        return ShmCommunicator(segment, rank, size, **options), segment
    from support.rank_programs import reserve_activations
    from tokenweave.kernels import make_kernels

    (symmetric_fd,) = symmetric_fds
    communicator = ShmCommunicator(
        segment, rank, size, symmetric_fd=symmetric_fd, kernels=make_kernels("native", 1), **options
    )
    reserve_activations(communicator)
    os.close(symmetric_fd)
    return communicator, segment


def join_symm_mem(rank: int, size: int, options: dict[str, Any], fds: list[int]) -> tuple[Any, None]:
    from support.symmetric_segments import join_interpreted

    return join_interpreted(rank, size, fds[0], options), None


def join_symm_gpu(rank: int, size: int, options: dict[str, Any], fds: list[int]) -> tuple[Any, None]:
    from tokenweave.communicators import SymmMemCommunicator

    os.environ["TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"] = "1"  # all ranks share one
    return SymmMemCommunicator.connect(rank, size, "127.0.0.1", options.pop("port"), **options), None


def join_torch(rank: int, size: int, options: dict[str, Any], fds: list[int]) -> tuple[Any, None]:
    from tokenweave.communicators import TorchCommunicator

    return TorchCommunicator.connect(rank, size, "127.0.0.1", options.pop("port"), **options), None


def join_gpus(rank: int, size: int, options: dict[str, Any], fds: list[int]) -> tuple[Any, None]:
    """Joins ranks on GPUs, one each; without `on_gpus` the CPU stands for them, as under Triton's interpreter."""
    from tokenweave.communicators.gpus import connect_gpus
    from tokenweave.environment import TorchrunEnvironment
    from tokenweave.kernels import make_kernels

    device = f"cuda:{rank}" if options.pop("on_gpus", False) else "cpu"
    where = TorchrunEnvironment(rank, size, "127.0.0.1", options.pop("port"))
    kernels = make_kernels("reference", device=device)
    return connect_gpus(where, kernels, ranks_on_host=size, **options), None


JOIN = {
    "gpus": join_gpus,
    "shm": join_shm,
    "symm_mem": join_symm_mem,
    "symm_gpu": join_symm_gpu,
    "torch": join_torch,
}


def main() -> None:
    warnings.simplefilter("error")
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    import torch

    torch.set_num_threads(1)
    channel = socket.socket(fileno=int(sys.argv[1]))
    communicator: Any = None
    segment: Any = None
    while True:
        try:
            (command, arguments), fds = receive(channel)
        except EOFError:
            return
        try:
            value: Any = None
            if command == "join":
                communicator, segment = join(*arguments, fds)
            elif command == "run":
                name, values = arguments
                module, _, program = name.rpartition(".")
                module = importlib.import_module(f"support.{module or 'rank_programs'}")
                value = getattr(module, program)(communicator, *values)
            elif command == "leave":
                communicator.close()
                if segment is not None:
                    segment.close()
            send(channel, ("returned", value))
        except Exception as error:
            send(channel, ("raised", error))


if __name__ == "__main__":
    main()
