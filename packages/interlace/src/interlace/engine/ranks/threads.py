"""Ranks as threads of this process: no shared memory, no other processes; for tests and for debugging."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from interlace.engine.config import EngineConfig
from interlace.engine.ranks.follow import follow
from tokenweave.communicators import Communicator
from tokenweave.errors import RankError

JOIN_TIMEOUT_S = 5.0


class RankThreads:
    """Ranks 1 to size - 1, each a thread of its own."""

    def __init__(self, config: EngineConfig, communicators: Sequence[Communicator]) -> None:
        self._config = config
        self._failure: tuple[int, str] | None = None
        self._failed = threading.Event()
        self._handler: Callable[[int, str], None] | None = None
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(
                target=self._run,
                args=(communicator,),
                name=f"interlace-rank-{communicator.rank}",
                daemon=True,
            )
            for communicator in communicators
        ]
        for thread in self._threads:
            thread.start()

    def on_failure(self, handler: Callable[[int, str], None]) -> None:
        """Have `handler` told which rank failed and why; at once if one has already."""
        with self._lock:
            self._handler, failure = handler, self._failure
        if failure is not None:
            handler(*failure)

    def wait_for_failure(self, timeout_s: float) -> tuple[int, str] | None:
        """The first rank that failed and why, or None when none has within `timeout_s`."""
        self._failed.wait(timeout_s)
        return self._failure

    def close(self) -> None:
        """Wait a bounded time for the threads, which have been told to quit or have lost their group."""
        for thread in self._threads:
            thread.join(JOIN_TIMEOUT_S)

    def _run(self, communicator: Communicator) -> None:
        try:
            follow(self._config, communicator, ranks_on_host=communicator.size)
        except RankError:
            pass  # another rank's failure: told by that rank
        except Exception as error:
            self._fail(
                communicator.rank, f"rank {communicator.rank} failed with {type(error).__name__}: {error}"
            )
            with suppress(Exception):
                communicator.abort(str(error))

    def _fail(self, rank: int, reason: str) -> None:
        with self._lock:
            self._failure = self._failure or (rank, reason)
            handler = self._handler
        self._failed.set()
        if handler is not None:
            handler(rank, reason)
