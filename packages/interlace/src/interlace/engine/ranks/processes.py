"""Ranks as processes of this host: starting them, watching them, and ending with them.

Thread safety: `RankProcesses` may be used from several threads; its watchers are threads of their own.

Invariants
1. A rank process never outlives its parent: it holds one end of a socket pair whose other end only the parent
   holds, and exits when that end closes, however the parent died.
2. Shared memory is a memfd, so the kernel frees it with the last process; nothing has a name to be left behind.
3. A rank process that ends before it was told to marks the job as failed, naming its rank and what ended it.

This file imports nothing heavy, so that rank processes start to load while the parent still imports torch.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from interlace.engine.config import EngineConfig
from interlace.errors import RankFailed

FAILURE_REPORT_S = 2.0  # how long to wait for a watcher to say which rank is behind a failed collective
EXIT_GRACE_S = 2.0  # from being told to end until being killed


@dataclass(frozen=True)
class RankSpec:
    """Everything that a rank process has to know when it starts."""

    rank: int
    size: int
    communicator: str  # "shm", "torch" or "null"
    config: dict[str, Any]  # an EngineConfig, as JSON can carry it
    segment_fd: int | None = None  # shm: where the ranks meet
    segment_size_bytes: int = 0
    symmetric_fd: int | None = None  # shm: an empty segment for activations
    link_fd: int | None = None  # this rank's port, where a link is modelled
    master_port: int = 0  # torch: where they meet, on this host

    def engine_config(self) -> EngineConfig:
        return EngineConfig(**self.config)


FailureHandler = Callable[[int, str], None]  # rank, reason


class RankProcesses:
    """Ranks 1 to size - 1, each a process of its own."""

    def __init__(self, specs: list[RankSpec]) -> None:
        self.failures: dict[int, str] = {}
        self._on_failure: FailureHandler | None = None
        self._closing = False
        self._lock = threading.Lock()
        self._failed = threading.Event()
        self._children: list[tuple[subprocess.Popen[bytes], socket.socket]] = []
        self._watchers: list[threading.Thread] = []
        try:
            for spec in specs:
                self._start(spec)
        except BaseException:
            self.close()
            raise

    def on_failure(self, handler: FailureHandler) -> None:
        """Have `handler` told of the first failure; at once if there was one already."""
        with self._lock:
            self._on_failure = handler
            failures = list(self.failures.items())
        for rank, reason in failures:
            handler(rank, reason)

    def wait_for_failure(self, timeout_s: float) -> tuple[int, str] | None:
        """The first rank known to have failed and why, or None when none has within `timeout_s`."""
        self._failed.wait(timeout_s)
        with self._lock:
            return next(iter(self.failures.items()), None)

    def raise_failure(self) -> None:
        """Does nothing unless a rank has failed.

        Raises:
            RankFailed: a rank has, and this is what it said.
        """
        if (known := self.wait_for_failure(0)) is not None:
            raise RankFailed(known[1], known[0])

    def close(self) -> None:
        """End every rank process: let it go, then kill it when it has not gone within the grace time."""
        self._closing = True
        for _, lifeline in self._children:
            _shutdown(lifeline)
        for process, lifeline in self._children:
            try:
                process.wait(EXIT_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            lifeline.close()
        for watcher in self._watchers:
            watcher.join(EXIT_GRACE_S)
        self._children, self._watchers = [], []

    def _start(self, spec: RankSpec) -> None:
        ours, theirs = socket.socketpair()
        shared = (spec.segment_fd, spec.symmetric_fd, spec.link_fd)
        fds = [theirs.fileno(), *(fd for fd in shared if fd is not None)]
        try:
            process = subprocess.Popen(  # -P: a rank does not import a random.py of the working directory
                [sys.executable, "-P", "-m", "interlace.engine.ranks.main", str(theirs.fileno())],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # the caller's stdout belongs to the caller
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._children.append((process, ours))
        ours.sendall(json.dumps(asdict(spec)).encode() + b"\n")
        watcher = threading.Thread(
            target=self._watch,
            args=(spec.rank, process, ours),
            name=f"interlace-rank-{spec.rank}",
            daemon=True,
        )
        watcher.start()
        self._watchers.append(watcher)

    def _watch(self, rank: int, process: subprocess.Popen[bytes], lifeline: socket.socket) -> None:
        """Wait for one rank process to end; it may have sent a reason first."""
        said = _read_all(lifeline)
        code = process.wait()
        if self._closing:
            return
        reason = f"rank {rank} (process {process.pid}) {said or _how_it_ended(code)}"
        with self._lock:
            self.failures[rank] = reason
            handler = self._on_failure
        self._failed.set()
        if handler is not None:
            handler(rank, reason)


def _read_all(lifeline: socket.socket) -> str:
    parts = []
    try:
        while data := lifeline.recv(65536):
            parts.append(data)
    except OSError:
        pass
    return b"".join(parts).decode(errors="replace").strip()


def _shutdown(lifeline: socket.socket) -> None:
    with suppress(OSError):  # the other end may have gone already
        lifeline.shutdown(socket.SHUT_WR)


def _how_it_ended(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit status {code}"
