"""Latency and bandwidth of the collectives: shared memory, threads and gloo, interleaved in one run.

    python benchmarks/collectives.py [--ranks 2] [--quick] [--json FILE]

Rank processes are pinned to a processor each where there are enough. Every operation is checked before it is timed.
Bandwidth is the tensor's bytes per second, in 1e9; `memcpy` copies as many bytes on one processor with nobody else
at work, and is the limit that no collective here can pass: every rank writes its tensor once and reads each other's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emucxl.shared_memory import SharedSegment
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
ROUND_S = 0.02  # about how long one round of one case runs

Case = tuple[str, int, torch.dtype]  # operation, num_tokens, dtype


def cases(quick: bool) -> list[Case]:
    sizes = [1, 512] if quick else NUM_TOKENS
    return [("barrier", 0, torch.float32)] + [
        (operation, num_tokens, dtype)
        for operation in OPERATIONS[1:]
        for num_tokens in sizes
        for dtype in DTYPES
    ]


def operation_of(comm: Communicator, case: Case) -> Callable[[], object]:
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


def check(tensor: Tensor, expected: float, case: Case) -> None:
    if not torch.equal(tensor, torch.full_like(tensor, expected)):
        raise SystemExit(f"{case}: wrong result, expected {expected} everywhere")


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


def time_case(comm: Communicator, case: Case, repeats: int) -> list[float]:
    call = operation_of(comm, case)
    number = calls_per_round(comm, call)
    return [time_round(comm, call, number) for _ in range(repeats)]


def time_on_threads(size: int, case: Case, repeats: int) -> list[float]:
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
    rank: int, size: int, segment: SharedSegment, port: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """The rows of the table, on rank 0; the other ranks take part."""
    processors = sorted(os.sched_getaffinity(0))
    if size <= len(processors):
        os.sched_setaffinity(0, {processors[rank]})
    torch.set_num_threads(1)
    rows = []
    with (
        ShmCommunicator(segment, rank, size) as shm,
        TorchCommunicator.connect(rank, size, "127.0.0.1", port, check_calls=False) as gloo,
    ):
        for case in cases(options.quick):
            times: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
            for _ in range(options.rounds):
                times["shm"] += time_case(shm, case, options.repeats)
                times["gloo"] += time_case(gloo, case, options.repeats)
                if rank == 0:
                    os.sched_setaffinity(0, processors)
                    times["thread"] += time_on_threads(size, case, options.repeats)
                    if size <= len(processors):
                        os.sched_setaffinity(0, {processors[rank]})
                shm.broadcast_bytes(
                    b"" if rank == 0 else None, idle=True
                )  # asleep while rank 0's threads work
            num_bytes = case[1] * HIDDEN_SIZE * case[2].itemsize
            memcpy_gbps = time_memcpy(num_bytes, options.repeats) if rank == 0 and num_bytes else None
            shm.broadcast_bytes(b"" if rank == 0 else None, idle=True)
            rows.append(row_of(case, num_bytes, times, memcpy_gbps) if rank == 0 else {})
    return rows


def row_of(
    case: Case, num_bytes: int, times: dict[str, list[float]], memcpy_gbps: float | None
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "operation": case[0],
        "num_tokens": case[1],
        "hidden_size": HIDDEN_SIZE,
        "dtype": str(case[2]).removeprefix("torch.") if case[1] else "",
        "size_bytes": num_bytes,
    }
    for backend in BACKENDS:
        row[f"{backend}_us"] = statistics.median(times[backend])
        row[f"{backend}_us_min"], row[f"{backend}_us_max"] = min(times[backend]), max(times[backend])
    if memcpy_gbps:
        row["shm_gbps"] = num_bytes / row["shm_us"] / 1e3
        row["memcpy_gbps"] = memcpy_gbps
        row["shm_of_memcpy"] = row["shm_gbps"] / memcpy_gbps
    return row


def print_table(rows: list[dict[str, Any]]) -> None:
    print(f"{'operation':<11}{'tokens':>7} {'dtype':<9}{'shm us':>10}{'(min':>9} - {'max)':<9}"
          f"{'thread us':>10}{'gloo us':>10}{'shm GB/s':>10}{'of memcpy':>10}")  # fmt: skip
    for row in rows:
        bandwidth = f"{row['shm_gbps']:>10.2f}{row['shm_of_memcpy']:>10.0%}" if "shm_gbps" in row else ""
        print(f"{row['operation']:<11}{row['num_tokens']:>7} {row['dtype']:<9}{row['shm_us']:>10.1f}"
              f"{row['shm_us_min']:>9.1f} - {row['shm_us_max']:<9.1f}"
              f"{row['thread_us']:>10.1f}{row['gloo_us']:>10.1f}{bandwidth}")  # fmt: skip


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return {
        "commit": commit.stdout.strip(),
        "processor": models[0] if models else platform.processor(),
        "processors": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
    }


def start(rank: int, segment: SharedSegment, port: int) -> subprocess.Popen[bytes]:
    """Another rank, a process with this one's options."""
    told = map(str, (rank, segment.fd, segment.size_bytes, port))
    return subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--join", *told], pass_fds=[segment.fd])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="how often the backends take turns")
    parser.add_argument("--repeats", type=int, default=3, help="timings per turn")
    parser.add_argument("--quick", action="store_true", help="two sizes only")
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    parser.add_argument(
        "--join", nargs=4, type=int, help=argparse.SUPPRESS
    )  # rank, fd, bytes, port of a rank process
    options = parser.parse_args()
    if options.join:
        rank, fd, size_bytes, port = options.join
        with SharedSegment.attach(fd, size_bytes) as segment:
            measure(rank, options.ranks, segment, port, options)
        return
    where = machine()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with SharedSegment.create("collectives", segment_bytes(options.ranks)) as segment:
        others = [
            subprocess.Popen(
                [
                    sys.executable,
                    __file__,
                    *sys.argv[1:],
                    "--join",
                    *map(str, (rank, segment.fd, segment.size_bytes, port)),
                ],
                pass_fds=[segment.fd],
            )
            for rank in range(1, options.ranks)
        ]
        rows = measure(0, options.ranks, segment, port, options)
        for other in others:
            other.wait()
    print_table(rows)
    if options.json:
        report = {
            "benchmark": "collectives",
            "ranks": options.ranks,
            **where,
            "warm_up": "3 calls",
            "rows": rows,
        }
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
