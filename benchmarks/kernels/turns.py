"""Two callers of the same work, timed in turns."""

from __future__ import annotations

import time
from collections.abc import Callable

from emucxl.bench.harness import Progress, Samples, interleaved

FEWEST_ROUNDS = 3


def time_in_turns(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    seconds: float,
    most_rounds: int,
    progress: Progress | None,
) -> tuple[Samples, Samples]:
    """The seconds of each call, ours and theirs, round by round for about `seconds`."""
    once_s = _seconds(ours) + _seconds(theirs)
    rounds = min(max(round(seconds / once_s), FEWEST_ROUNDS), most_rounds)
    calls = {"ours": lambda: _seconds(ours), "theirs": lambda: _seconds(theirs)}
    samples = interleaved(calls, rounds, progress)
    return samples["ours"], samples["theirs"]


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
