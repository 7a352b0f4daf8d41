"""A replay: prompts on a live engine, some at a time or each when it is due, and what was found of them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from interlace.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from emucxl.bench.harness import Progress
    from interlace.engine.chunk import StreamChunk
    from interlace.engine.engine import Engine


@dataclass(frozen=True)
class Pace:
    """When the next prompt is sent: while fewer than `concurrency` are unfinished, and not before it is due.

    `due_s`: of each prompt, from the start, ascending; (): at once.
    """

    concurrency: float = math.inf
    due_s: Sequence[float] = ()

    def wait_s(self, place: int, elapsed_s: float) -> float:
        """Seconds until the prompt at `place` is due; 0: it is."""
        return max(0.0, self.due_s[place] - elapsed_s) if self.due_s else 0.0


@dataclass
class Replayed:
    """Measured: tokens of prompts that were found, by request, and times in seconds."""

    num_cached: list[int]
    ttft_s: list[float]  # ascending
    num_fetched: int = 0  # tokens of those found that came from tiers
    num_output_tokens: int = 0
    num_preemptions: int = 0
    total_s: float = 0.0


def replay(
    engine: Engine,
    prompts: Sequence[list[int]],
    output_tokens: Sequence[int],
    pace: Pace,
    progress: Progress | None = None,
) -> Replayed:
    """Runs every prompt, sent in order, to exactly so many tokens of output.

    Raises:
        RequestFailed: a request failed in a step.
        RequestError, EngineError: a prompt does not fit, or the ranks failed.
    """
    found = Replayed([0] * len(prompts), [])
    num_sent = num_ended = 0
    start_s = time.perf_counter()
    while num_ended < len(prompts):
        wait_s = 0.0
        while num_sent < len(prompts) and num_sent - num_ended < pace.concurrency and not wait_s:
            wait_s = pace.wait_s(num_sent, time.perf_counter() - start_s)
            if not wait_s:
                params = SamplingParams(temperature=0.0, max_tokens=output_tokens[num_sent], ignore_eos=True)
                engine.add_request(str(num_sent), prompts[num_sent], params)
                num_sent += 1
        if num_sent == num_ended:
            time.sleep(wait_s)
            continue
        for chunk in engine.step():
            num_ended += _take(chunk, found)
        if progress is not None:
            progress(num_ended / len(prompts), f"{num_ended} of {len(prompts)} requests")
    found.total_s = time.perf_counter() - start_s
    found.ttft_s.sort()
    return found


def _take(chunk: StreamChunk, found: Replayed) -> bool:
    """Counts what `chunk` says of its request; returns whether that has ended."""
    if chunk.error is not None:
        raise chunk.error
    if chunk.output is None:
        return False
    metrics = chunk.output.metrics
    found.num_cached[int(chunk.request_id)] = metrics.num_cached_tokens
    found.num_fetched += metrics.num_fetched_tokens
    found.num_output_tokens += metrics.num_output_tokens
    found.num_preemptions += metrics.num_preemptions
    if metrics.time_to_first_token_s is not None:
        found.ttft_s.append(metrics.time_to_first_token_s)
    return True
