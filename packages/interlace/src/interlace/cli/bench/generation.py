"""Greedy generation, one forward pass at a time, so that each token is seen when it appears."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from interlace.cli.bench.workload import Generated
from interlace.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from interlace.engine.engine import Engine


def generate(engine: Engine, prompts: list[list[int]], max_tokens: int) -> Generated:
    """Generates exactly `max_tokens` for each prompt. The engine detokenises as it does for every caller."""
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    tokens: list[list[int]] = [[] for _ in prompts]
    waiting = set(range(len(prompts)))  # sequences with no token yet
    first_s, num_at_first = 0.0, 0
    start = time.perf_counter()
    for index, prompt in enumerate(prompts):
        engine.add_request(f"bench-{index}", prompt, params)
    while engine.has_unfinished:
        for chunk in engine.step():
            index = int(chunk.request_id.removeprefix("bench-"))
            tokens[index] += chunk.token_ids
            if index in waiting and chunk.token_ids:
                waiting.discard(index)
                first_s, num_at_first = time.perf_counter() - start, sum(map(len, tokens))
    return Generated(tokens, first_s, num_at_first, time.perf_counter() - start)
