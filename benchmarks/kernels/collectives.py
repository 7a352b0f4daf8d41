"""`make bench collectives`: latency and bandwidth over shared memory, threads and gloo, interleaved in one run.

Rank processes are pinned to a processor each where there are enough. Every operation is checked before it is timed.
Bandwidth is the tensor's bytes per second, in 1e9; `memcpy` copies as many bytes on one processor with nobody else
at work, and is the limit that no collective here can pass: every rank writes its tensor once and reads each other's.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from benchmarks.harness.processes import module_command
from emucxl.bench.harness import Report, Samples
from emucxl.shared_memory import SharedSegment
from interlace.errors import BenchError
from tokenweave.communicators import (
    Communicator,
    ShmCommunicator,
    TorchCommunicator,
    segment_bytes,
    thread_group,
)

HIDDEN_SIZE = 576
NUM_TOKENS = [1, 16, 128, 512, 2048]
DTYPES = [torch.bfloat16, torch.float32]
OPERATIONS = ["barrier", "all_reduce", "all_gather", "broadcast"]
BACKENDS = ["shm", "thread", "gloo"]
EVERY_CORE = os.sched_getaffinity(0)
ROUND_S = 0.02  # about how long one round of one case runs

CollectiveCase = tuple[str, int, torch.dtype]  # operation, num_tokens, dtype
END_S = 60.0


@dataclass(frozen=True)
class CollectiveOptions:
    """The ranks that take part, how often the backends take turns, and the timings in each turn."""

    ranks: int = 2
    rounds: int = 3
    repeats: int = 3
    is_quick: bool = False

    def __post_init__(self) -> None:
        for name in ("ranks", "rounds", "repeats"):
            if getattr(self, name) < 1:
                raise BenchError(f"got {name}={getattr(self, name)}; expected at least 1")


@dataclass(frozen=True)
class CollectiveFigures:
    """Microseconds of one case by backend, and the speed of a copy of as many bytes."""

    case: CollectiveCase
    microseconds: dict[str, Samples]
    memcpy_gbps: float | None

    @property
    def size_bytes(self) -> int:
        _, num_tokens, dtype = self.case
        return num_tokens * HIDDEN_SIZE * dtype.itemsize

    @property
    def shm_gbps(self) -> float:
        return self.size_bytes / self.microseconds["shm"].median / 1e3

    @property
    def dtype(self) -> str:
        return str(self.case[2]).removeprefix("torch.") if self.size_bytes else ""


def cases(quick: bool) -> list[CollectiveCase]:
    sizes = [1, 512] if quick else NUM_TOKENS
    return [("barrier", 0, torch.float32)] + [
        (operation, num_tokens, dtype)
        for operation in OPERATIONS[1:]
        for num_tokens in sizes
        for dtype in DTYPES
    ]


def operation_of(comm: Communicator, case: CollectiveCase) -> Callable[[], object]:
    """The call to time, after checking that it gives what it should."""
    operation, num_tokens, dtype = case
    if operation == "barrier":
        return comm.barrier
    tensor = torch.full((num_tokens, HIDDEN_SIZE), comm.rank + 1.0).to(dtype)
    if operation == "all_reduce":
        comm.all_reduce(tensor)
        check(tensor, float(sum(range(comm.size + 1))), case)
        tensor.zero_()  # so that the sum stays finite however often it is taken
        return lambda: comm.all_reduce(tensor)
    if operation == "all_gather":
        for rank, part in enumerate(comm.all_gather(tensor).chunk(comm.size)):
            check(part, rank + 1.0, case)
        return lambda: comm.all_gather(tensor)
    comm.broadcast(tensor, root=comm.size - 1)
    check(tensor, float(comm.size), case)
    return lambda: comm.broadcast(tensor)


def check(tensor: Tensor, expected: float, case: CollectiveCase) -> None:
    if not torch.equal(tensor, torch.full_like(tensor, expected)):
        raise BenchError(f"{case} gave a wrong result; expected {expected} everywhere. Nothing was timed")


def calls_per_round(comm: Communicator, call: Callable[[], object]) -> int:
    """The same number on every rank: rank 0 measures, all do."""
    comm.barrier()
    started_s = time.perf_counter()
    for _ in range(3):
        call()
    number = max(3, int(3 * ROUND_S / (time.perf_counter() - started_s)))
    return int.from_bytes(
        comm.broadcast_bytes(number.to_bytes(8, "little") if comm.rank == 0 else None), "little"
    )


def time_round(comm: Communicator, call: Callable[[], object], number: int) -> float:
    """Microseconds per call."""
    comm.barrier()
    started_s = time.perf_counter()
    for _ in range(number):
        call()
    comm.barrier()  # a broadcast's root would otherwise be timed alone
    return (time.perf_counter() - started_s) / number * 1e6


def time_case(comm: Communicator, case: CollectiveCase, repeats: int) -> list[float]:
    call = operation_of(comm, case)
    number = calls_per_round(comm, call)
    return [time_round(comm, call, number) for _ in range(repeats)]


def time_on_threads(size: int, case: CollectiveCase, repeats: int) -> list[float]:
    times: dict[int, list[float]] = {}

    def body(comm: Communicator) -> None:
        times[comm.rank] = time_case(comm, case, repeats)

    threads = [threading.Thread(target=body, args=(comm,)) for comm in thread_group(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times[0]


def time_memcpy(num_bytes: int, repeats: int) -> float:
    """GB/s of copying `num_bytes` from and to memory that is already mapped."""
    source, target = torch.ones(num_bytes, dtype=torch.uint8), torch.zeros(num_bytes, dtype=torch.uint8)
    number = max(3, int(ROUND_S * 10e9 / num_bytes))
    best_s = float("inf")
    for _ in range(repeats):
        started_s = time.perf_counter()
        for _ in range(number):
            target.copy_(source)
        best_s = min(best_s, (time.perf_counter() - started_s) / number)
    return num_bytes / best_s / 1e9


def measure(
    rank: int, segment: SharedSegment, port: int, options: CollectiveOptions
) -> list[CollectiveFigures]:
    """Every case, on rank 0; the other ranks take part and return nothing."""
    own_core = _core_of(rank, options.ranks)
    os.sched_setaffinity(0, own_core)
    torch.set_num_threads(1)
    found = []
    with (
        ShmCommunicator(segment, rank, options.ranks) as shm,
        TorchCommunicator.connect(rank, options.ranks, "127.0.0.1", port, check_calls=False) as gloo,
    ):
        for case in cases(options.is_quick):
            figures = _measure(shm, gloo, case, options, own_core)
            if figures is not None:
                found.append(figures)
    return found


def _measure(
    shm: Communicator,
    gloo: Communicator,
    case: CollectiveCase,
    options: CollectiveOptions,
    own_core: set[int],
) -> CollectiveFigures | None:
    times: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
    for _ in range(options.rounds):
        times["shm"] += time_case(shm, case, options.repeats)
        times["gloo"] += time_case(gloo, case, options.repeats)
        if shm.rank == 0:
            os.sched_setaffinity(0, EVERY_CORE)
            times["thread"] += time_on_threads(shm.size, case, options.repeats)
            os.sched_setaffinity(0, own_core)
        _wait_for_rank_0(shm)
    size_bytes = case[1] * HIDDEN_SIZE * case[2].itemsize
    memcpy_gbps = time_memcpy(size_bytes, options.repeats) if shm.rank == 0 and size_bytes else None
    _wait_for_rank_0(shm)
    if shm.rank != 0:
        return None
    return CollectiveFigures(
        case, {backend: Samples(tuple(values)) for backend, values in times.items()}, memcpy_gbps
    )


def _wait_for_rank_0(shm: Communicator) -> None:
    """The others sleep while rank 0 works alone."""
    shm.broadcast_bytes(b"" if shm.rank == 0 else None, idle=True)


def _core_of(rank: int, size: int) -> set[int]:
    cores = sorted(EVERY_CORE)
    return {cores[rank]} if size <= len(cores) else EVERY_CORE


def run(options: CollectiveOptions) -> Report:
    """Every operation over every backend.

    Raises:
        BenchError: an operation gives something wrong.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with SharedSegment.create("collectives", segment_bytes(options.ranks)) as segment:
        others = [_start(rank, segment, port, options) for rank in range(1, options.ranks)]
        try:
            found = measure(0, segment, port, options)
            for other in others:
                other.wait(END_S)
        finally:
            os.sched_setaffinity(0, EVERY_CORE)
            for other in others:
                other.kill()
                other.wait()
    return report(options, found)


def _start(
    rank: int, segment: SharedSegment, port: int, options: CollectiveOptions
) -> subprocess.Popen[bytes]:
    told = [rank, segment.fd, segment.size_bytes, port, json.dumps(asdict(options))]
    return subprocess.Popen(module_command(__name__, *told), pass_fds=[segment.fd])


def report(options: CollectiveOptions, found: list[CollectiveFigures]) -> Report:
    """One row for each case."""
    return Report(
        name="collectives",
        title=f"Collectives of {options.ranks} ranks, [tokens, {HIDDEN_SIZE}]: us (measured)",
        columns=("operation", "tokens", "dtype", *BACKENDS, "shm GB/s", "of memcpy"),
        rows=tuple(_row(each) for each in found),
        notes=(
            f"medians (quartiles) of {options.rounds} turns of {options.repeats} timings",
            "memcpy: the same bytes on one core, with nobody else at work",
        ),
        results={"options": asdict(options), "cases": [_to_json(each) for each in found]},
    )


def _row(found: CollectiveFigures) -> tuple[str, ...]:
    operation, num_tokens, _ = found.case
    speeds = ("-", "-")
    if found.memcpy_gbps is not None:
        speeds = (f"{found.shm_gbps:.2f}", f"{found.shm_gbps / found.memcpy_gbps:.0%}")
    times = (found.microseconds[backend].text(1) for backend in BACKENDS)
    return (operation, str(num_tokens), found.dtype, *times, *speeds)


def _to_json(found: CollectiveFigures) -> dict[str, object]:
    return {
        "operation": found.case[0],
        "shape": [found.case[1], HIDDEN_SIZE],
        "dtype": found.dtype,
        "size_bytes": found.size_bytes,
        "backends": {backend: samples.to_json("us") for backend, samples in found.microseconds.items()},
        "memcpy_gbps": found.memcpy_gbps,
    }


def main() -> None:
    """One of the other ranks."""
    rank, fd, size_bytes, port = map(int, sys.argv[1:5])
    with SharedSegment.attach(fd, size_bytes) as segment:
        measure(rank, segment, port, CollectiveOptions(**json.loads(sys.argv[5])))


if __name__ == "__main__":
    main()
