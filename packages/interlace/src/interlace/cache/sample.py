"""A sample of a block trace: fewer requests that have as much in common as all of them.

The first requests of a trace would not do: what they could find has not been asked for yet. So whole *families* are
drawn, requests that share more than what nearly everybody shares, such as the turns of a conversation. A cache of a
part of the size then finds about the same share in the same part of the families (Waldspurger, Park, Garthwaite, Ahmad,
FAST 2015, of single blocks).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from interlace.cache.block_trace import BlockTrace

COMMON = 1 / 20  # of all requests: a block that more of them ask for makes no family


def sampled(trace: BlockTrace, num_requests: int) -> BlockTrace:
    """Returns about `num_requests` of the trace, in their order: families drawn until there are as many.

    The same in every run. All of the trace where it has no more.
    """
    if num_requests >= trace.num_requests:
        return trace
    families = _families(trace)
    random.Random(0).shuffle(families)
    taken: list[int] = []
    for family in families:
        if len(taken) >= num_requests:
            break
        taken += family
    return _part(trace, sorted(taken))


def _families(trace: BlockTrace) -> list[list[int]]:
    """The requests of each family: those with the same first block that is not common."""
    counts = Counter(trace.asked)
    most = COMMON * trace.num_requests
    families: dict[int, list[int]] = {}
    alone: list[list[int]] = []
    for request, blocks in enumerate(trace.blocks):
        own = next((block for block in blocks if counts[block] <= most), None)
        if own is None:
            alone.append([request])
        else:
            families.setdefault(own, []).append(request)
    return [*families.values(), *alone]


def _part(trace: BlockTrace, requests: Sequence[int]) -> BlockTrace:
    number_of: dict[int, int] = {}
    blocks = [
        [number_of.setdefault(block, len(number_of)) for block in trace.blocks[request]]
        for request in requests
    ]
    return BlockTrace(
        trace.block_tokens,
        [trace.arrivals_s[request] for request in requests],
        [trace.prompt_tokens[request] for request in requests],
        blocks,
        [trace.output_tokens[request] for request in requests],
    )
