"""Groups of ranks to run test programs on: as threads of this process or as processes of their own."""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emucxl.shared_memory import SharedSegment, empty_segment_fd
from support import rank_programs
from support.rank_worker import receive, send
from support.symmetric_segments import REGION_BYTES
from tokenweave.communicators import (
    Communicator,
    LinkedCommunicator,
    NullCommunicator,
    ShmCommunicator,
    segment_bytes,
    thread_group,
)
from tokenweave.kernels import make_kernels
from tokenweave.link import LinkSpec

SLOT_BYTES = 16 * 1024  # small, so that moderate tensors already go in several chunks
LINK = "2GB/s,10us"  # fast: the suite looks at what comes through, not at how long it takes
TIMEOUT_S = 90.0  # of a group of which no rank is expected to be late, on a machine however busy
JOIN_S = 150.0

Outcome = Any  # what a rank's program returned, or the exception it raised


class ThreadRanks:
    """Each rank is a thread of this process."""

    is_interpreted = False

    def __init__(self, communicators: list[Communicator], segment: SharedSegment | None = None) -> None:
        self.communicators = communicators
        self.size = len(communicators)
        self._segment = segment

    def run(self, program: str, *arguments: object, ranks: list[int] | None = None) -> list[Outcome]:
        """`program` of rank_programs on all ranks (or these) at once; what each returned or raised."""
        return self.start(program, *arguments, ranks=ranks)()

    def start(
        self, program: str, *arguments: object, ranks: list[int] | None = None
    ) -> Callable[[], list[Outcome]]:
        chosen = list(range(self.size)) if ranks is None else ranks
        outcomes: dict[int, Outcome] = {}

        def body(rank: int) -> None:
            try:
                module, _, name = program.rpartition(".")
                programs = importlib.import_module(f"support.{module or 'rank_programs'}")
                outcomes[rank] = getattr(programs, name)(self.communicators[rank], *arguments)
            except Exception as error:
                outcomes[rank] = error

        threads = [threading.Thread(target=body, args=(rank,), daemon=True) for rank in chosen]
        for thread in threads:
            thread.start()

        def finish() -> list[Outcome]:
            for thread in threads:
                thread.join(JOIN_S)
                assert not thread.is_alive(), f"{program} hangs"
            return [outcomes[rank] for rank in chosen]

        return finish

    def close(self) -> None:
        for communicator in self.communicators:
            communicator.close()
        if self._segment is not None:
            self._segment.close()


class Worker:
    """A rank process. Serves one group after the other, because importing torch takes seconds."""

    def __init__(self) -> None:
        self.channel, theirs = socket.socketpair()
        self.channel.settimeout(JOIN_S)
        script = Path(__file__).with_name("rank_worker.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(theirs.fileno())], pass_fds=[theirs.fileno()]
        )
        theirs.close()

    def result(self) -> Outcome:
        try:
            (_, value), _ = receive(self.channel)
        except (EOFError, ConnectionResetError):
            return "gone"
        return value

    def close(self) -> None:
        self.channel.close()
        self.process.wait(JOIN_S)


class Workers:
    """As many rank processes as were ever needed at once; dead ones are replaced."""

    def __init__(self) -> None:
        self._workers: list[Worker] = []

    def take(self, count: int) -> list[Worker]:
        for dead in [worker for worker in self._workers if worker.process.poll() is not None]:
            dead.close()
            self._workers.remove(dead)
        self._workers += [Worker() for _ in range(count - len(self._workers))]
        return self._workers[:count]

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


class ProcessRanks:
    """Each rank is a process of its own."""

    def __init__(self, workers: list[Worker], kind: str, options: dict[str, Any]) -> None:
        self.workers = workers
        self.size = len(workers)
        self.is_interpreted = kind == "symm_mem"
        self.segment: SharedSegment | None = None
        link = options.pop("link", None)
        self.ports = [LinkSpec.parse(link).new_port() for _ in workers] if link else []
        fds: tuple[int, ...] = ()
        symmetric_fds: tuple[int, ...] = ()
        if kind in ("shm", "shm-symmetric"):
            self.segment = SharedSegment.create("test", segment_bytes(self.size, options["slot_bytes"]))
            symmetric_fds = (empty_segment_fd("test"),) if kind == "shm-symmetric" else ()
            fds = (self.segment.fd, *symmetric_fds)
            kind = "shm"
        else:
            options = {**options, "port": free_port()}
        if kind == "symm_mem":
            self.segment = SharedSegment.create("test", self.size * REGION_BYTES)
            fds = (self.segment.fd,)
        for rank, worker in enumerate(workers):
            port_fds = (self.ports[rank].fd,) if self.ports else ()
            send(
                worker.channel,
                ("join", (kind, rank, self.size, options, bool(port_fds))),
                (*fds, *port_fds),
            )
        for fd in symmetric_fds:
            os.close(fd)
        for outcome in [worker.result() for worker in workers]:
            if isinstance(outcome, BaseException):
                raise outcome

    def run(self, program: str, *arguments: object, ranks: list[int] | None = None) -> list[Outcome]:
        return self.start(program, *arguments, ranks=ranks)()

    def start(
        self, program: str, *arguments: object, ranks: list[int] | None = None
    ) -> Callable[[], list[Outcome]]:
        chosen = self.workers if ranks is None else [self.workers[rank] for rank in ranks]
        for worker in chosen:
            send(worker.channel, ("run", (program, arguments)))
        return lambda: [worker.result() for worker in chosen]

    def close(self) -> None:
        """Once: its workers may serve another group by then."""
        alive = [worker for worker in self.workers if worker.process.poll() is None]
        self.workers = []
        for worker in alive:
            with contextlib.suppress(
                BrokenPipeError, ConnectionResetError
            ):  # a death is seen before it is over
                send(worker.channel, ("leave", ()))
        outcomes = [worker.result() for worker in alive]
        if self.segment is not None:
            self.segment.close()
        for port in self.ports:
            port.close()
        assert all(outcome in (None, "gone") for outcome in outcomes), outcomes


Ranks = ThreadRanks | ProcessRanks
MakeRanks = Callable[..., Ranks]  # kind, size, and options of `make_ranks`


def make_ranks(kind: str, size: int, workers: Workers, **options: Any) -> Ranks:
    """A group of `size` ranks of "null", "thread", "shm-threads", "shm-processes", "torch" or "symm_mem".

    "shm-symmetric-threads" and -"processes" have symmetric memory. With "linked-" before it, behind modelled links of
    `link`.
    """
    if kind.startswith("linked-"):
        options.setdefault("link", LINK)
        kind = kind.removeprefix("linked-")
    if (kind in ("null", "thread") or kind.endswith("-threads")) and "link" in options:
        port = LinkSpec.parse(options.pop("link")).new_port
        ranks = make_ranks(kind, size, workers, **options)
        assert isinstance(ranks, ThreadRanks)
        ranks.communicators = [LinkedCommunicator(inner, port()) for inner in ranks.communicators]
        return ranks
    if kind == "null":
        return ThreadRanks([NullCommunicator(**options)])
    if kind == "thread":
        return ThreadRanks(list(thread_group(size, **options)))
    if kind == "shm-threads":
        segment = SharedSegment.create("test", segment_bytes(size, SLOT_BYTES))
        ranks = [ShmCommunicator(segment, r, size, slot_bytes=SLOT_BYTES, **options) for r in range(size)]
        return ThreadRanks(list(ranks), segment)
    if kind == "shm-symmetric-threads":
        return _symmetric_threads(size, options)
    if kind.endswith("-processes"):
        options = {"slot_bytes": SLOT_BYTES, **options}
        return ProcessRanks(workers.take(size), kind.removesuffix("-processes"), options)
    return ProcessRanks(workers.take(size), kind, options)


def _symmetric_threads(size: int, options: dict[str, Any]) -> ThreadRanks:
    activations = options.pop("activations", rank_programs.ACTIVATIONS)
    segment, symmetric_fd = (
        SharedSegment.create("test", segment_bytes(size, SLOT_BYTES)),
        empty_segment_fd("test"),
    )
    ranks = ThreadRanks(
        [
            ShmCommunicator(
                *(segment, rank, size),
                slot_bytes=SLOT_BYTES,
                symmetric_fd=symmetric_fd,
                kernels=make_kernels("native", 1),
                **options,
            )
            for rank in range(size)
        ],
        segment,
    )
    assert ranks.run("reserve_activations", activations) == [None] * size
    os.close(symmetric_fd)
    return ranks


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
