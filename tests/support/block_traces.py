"""Small block traces for the simulator of the cache: prompts that share prefixes, as conversations do."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from interlace.cache.block_trace import BlockTrace

BLOCK_TOKENS = 4


def rows(seed: int, num_requests: int, most_new: int = 4) -> list[dict[str, Any]]:
    """Requests that go on from a prefix of an earlier one, or from nothing, with blocks that are new."""
    draw = random.Random(seed)
    prompts: list[list[int]] = [[]]
    found, next_id, now_ms = [], 0, 0
    for _ in range(num_requests):
        before = draw.choice(prompts[-12:])
        prompt = before[: draw.randint(0, len(before))]
        num_new = draw.randint(0 if prompt else 1, most_new)
        prompt = [*prompt, *range(next_id, next_id + num_new)]
        next_id += num_new
        now_ms += draw.randint(0, 50)
        prompts.append(prompt)
        found.append(row(now_ms, prompt))
    return found


def row(timestamp_ms: float, hash_ids: list[int], **changes: Any) -> dict[str, Any]:
    """A request whose last block is not full."""
    length = max(1, BLOCK_TOKENS * len(hash_ids) - 1)
    return {
        "timestamp": timestamp_ms,
        "input_length": length,
        "output_length": 1,
        "hash_ids": hash_ids,
        **changes,
    }


def write(path: Path, found: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in found))
    return path


def trace_of(*prompts: list[int]) -> BlockTrace:
    """A prompt each second, and a token of output. Blocks are numbered as they appear, as those of a file are."""
    return BlockTrace(
        BLOCK_TOKENS,
        [float(at) for at in range(len(prompts))],
        [4 * len(each) for each in prompts],
        prompts,
        [1] * len(prompts),
    )


def random_trace(seed: int, num_requests: int = 60) -> BlockTrace:
    return trace_of(*(each["hash_ids"] for each in rows(seed, num_requests)))
