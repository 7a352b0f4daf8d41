"""Block traces: which blocks of keys and values the requests of a service asked for, and when.

The form is Mooncake's (Qin et al., FAST 2025): a JSON object in each line, with `timestamp` (milliseconds, in order),
`input_length` and `output_length` (tokens), and `hash_ids`: a number for each block of the prompt. A number names the
block *and all before it*, so two requests that share a number share their prompts up to there. There is no text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from interlace.errors import BlockTraceError

KEYS = ("timestamp", "input_length", "output_length", "hash_ids")
BLOCK_TOKENS = 512  # of the published traces
MOST = 10**15  # of a length, and of a timestamp: above it, sums of them would lose their last digits


@dataclass(frozen=True)
class BlockTrace:
    """Requests in the order of their arrival. Blocks have numbers from 0, in the order in which they first appear."""

    block_tokens: int
    arrivals_s: Sequence[float]  # (num_requests,)
    prompt_tokens: Sequence[int]  # (num_requests,)
    blocks: Sequence[Sequence[int]]  # (num_requests, blocks of that prompt), first block first
    output_tokens: Sequence[int] = ()  # (num_requests,); (): nobody asks

    @property
    def num_requests(self) -> int:
        return len(self.blocks)

    @cached_property
    def num_distinct(self) -> int:
        """The blocks that a cache without a limit would hold at the end."""
        return 1 + max(self.asked, default=-1)

    @cached_property
    def asked(self) -> Sequence[int]:
        """The blocks asked for, (num_asked,): those of all requests, one after the other."""
        return [block for blocks in self.blocks for block in blocks]

    @cached_property
    def next_use(self) -> Sequence[int]:
        """For each place in `asked`, the place where the same block is asked for again; -1: never."""
        places = [-1] * self.num_distinct
        found = [-1] * len(self.asked)
        for place in range(len(self.asked) - 1, -1, -1):
            block = self.asked[place]
            found[place] = places[block]
            places[block] = place
        return found

    @classmethod
    def read(cls, path: Path, block_tokens: int = BLOCK_TOKENS) -> BlockTrace:
        """Reads the file `path`, of prompts in blocks of `block_tokens`. Lines without text are passed over.

        Raises:
            BlockTraceError: it cannot be read, holds no request, or is no such trace; the message names the line.
        """
        number_of: dict[int, int] = {}
        arrivals_s: list[float] = []
        prompt_tokens: list[int] = []
        blocks: list[list[int]] = []
        output_tokens: list[int] = []
        last_ms = 0.0
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise BlockTraceError(f"{path} cannot be read: {error.strerror}") from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                timestamp_ms, length, output_length, hash_ids = _request(line, block_tokens)
                if timestamp_ms < last_ms:
                    raise ValueError(
                        f"got timestamp {timestamp_ms:g} after {last_ms:g}; expected requests in the order of arrival"
                    )
            except (ValueError, RecursionError) as error:
                raise BlockTraceError(f"{path}, line {number}: {error}") from error
            last_ms = timestamp_ms
            arrivals_s.append(timestamp_ms / 1e3)
            prompt_tokens.append(length)
            output_tokens.append(output_length)
            blocks.append([number_of.setdefault(each, len(number_of)) for each in hash_ids])
        if not blocks:
            raise BlockTraceError(f"{path} holds no request; expected a JSON object in each line")
        return cls(block_tokens, arrivals_s, prompt_tokens, blocks, output_tokens)


def _request(line: bytes, block_tokens: int) -> tuple[float, int, int, list[int]]:
    """Timestamp, lengths of prompt and output, and blocks of one line. Raises ValueError for what is wrong with it."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error}); is the file cut off?") from error
    if not isinstance(found, dict):
        raise ValueError(f"got {type(found).__name__}; expected a JSON object with {', '.join(KEYS)}")
    missing = [key for key in KEYS if key not in found]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing; expected {', '.join(KEYS)}")
    timestamp_ms = found["timestamp"]
    is_number = isinstance(timestamp_ms, int | float) and not isinstance(timestamp_ms, bool)
    if not is_number or not 0 <= timestamp_ms <= MOST:  # nan is in no range
        raise ValueError(f"got timestamp={timestamp_ms!r}; expected milliseconds, 0 or more")
    length = _natural(found, "input_length", 1)
    output_length = _natural(found, "output_length", 0)
    return timestamp_ms, length, output_length, _hash_ids(found["hash_ids"], length, block_tokens)


def _natural(found: dict[str, Any], key: str, least: int) -> int:
    value = found[key]
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST:
        raise ValueError(f"got {key}={value!r}; expected a whole number of tokens, {least} or more")
    return value


def _hash_ids(value: Any, length: int, block_tokens: int) -> list[int]:
    if not isinstance(value, list) or any(type(each) is not int or each < 0 for each in value):
        raise ValueError("got hash_ids that are no list of whole numbers, 0 or more")
    if len(set(value)) != len(value):
        twice = next(each for place, each in enumerate(value) if each in value[:place])
        raise ValueError(f"got {twice} twice in hash_ids; expected each to name a block and all before it")
    whole, rest = divmod(length, block_tokens)
    if len(value) not in (whole, whole + (rest > 0)):  # some traces leave out a block that is not full
        raise ValueError(
            f"got {len(value)} hash_ids for {length} tokens; expected {whole + (rest > 0)}, "
            f"as a block has {block_tokens} tokens"
        )
    return value
