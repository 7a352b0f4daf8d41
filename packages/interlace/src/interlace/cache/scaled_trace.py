"""A block trace scaled down: its blocks with fewer tokens each, as prompts that a live engine can compute.

Prompts share blocks as those of the trace do: a block always has the same tokens, and other tokens than any other.
Every block is full here, and behind the last one a prompt has a token of its own: so an engine, which has to compute
one token at least, can find every block that the trace says was there before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from interlace.cache.block_trace import BlockTrace
from interlace.cache.policies import Lru
from interlace.errors import BlockTraceError

ENGINE_BLOCK = 16  # tokens of a block of an engine
FIRST_TOKEN = 256  # below it vocabularies keep special tokens and single bytes


@dataclass(frozen=True)
class ScaledTrace:
    """The requests of a trace, whose blocks have `block_tokens` tokens: whole blocks of an engine.

    `whole`: the trace that they are of. `num_cut`: prompts of which blocks were left out at their end.
    """

    whole: BlockTrace
    block_tokens: int
    blocks: Sequence[Sequence[int]]  # (num_requests, blocks of that prompt), by the numbers of `whole`
    output_tokens: Sequence[int]  # (num_requests,)
    num_cut: int

    @classmethod
    def of(cls, trace: BlockTrace, block_tokens: int, room_tokens: int, most_output: int) -> ScaledTrace:
        """Takes as many blocks of each prompt as leave room for its output.

        room_tokens: of the longest prompt with its output. most_output: tokens, at least 1; outputs are scaled as
        blocks are, but no longer.

        Raises:
            BlockTraceError: blocks that are no whole blocks of an engine, or none of which there is room for.
        """
        if block_tokens < ENGINE_BLOCK or block_tokens % ENGINE_BLOCK:
            raise BlockTraceError(
                f"got {block_tokens} tokens per block; expected a multiple of {ENGINE_BLOCK}, the tokens of an "
                "engine's blocks"
            )
        most_blocks = (room_tokens - 1 - most_output) // block_tokens
        if most_blocks < 1:
            raise BlockTraceError(
                f"a block of {block_tokens} tokens, one token more and {most_output} of output do not fit the "
                f"{room_tokens} that context and cache have room for; expected fewer tokens per block or of output"
            )
        outputs = (
            max(1, min(most_output, round(each * block_tokens / trace.block_tokens)))
            for each in trace.output_tokens
        )
        blocks = [each[:most_blocks] for each in trace.blocks]
        num_cut = sum(len(each) > most_blocks for each in trace.blocks)
        return cls(trace, block_tokens, blocks, list(outputs), num_cut)

    @property
    def num_requests(self) -> int:
        return len(self.blocks)

    def prompt(self, request: int, vocab_size: int) -> list[int]:
        """The prompt of a request: token ids. Nothing random is in it: it is the same in every run."""
        first = min(FIRST_TOKEN, vocab_size // 2)
        ids = [
            np.random.default_rng(block).integers(first, vocab_size, self.block_tokens)
            for block in self.blocks[request]
        ]
        own = np.array([first + request % (vocab_size - first)])
        return [int(token) for part in (*ids, own) for token in part]

    @cached_property
    def in_engine_blocks(self) -> BlockTrace:
        """The prompts in blocks of the engine, ENGINE_BLOCK tokens each, numbered anew."""
        parts = range(self.block_tokens // ENGINE_BLOCK)
        number_of: dict[tuple[int, int], int] = {}
        blocks = [
            [number_of.setdefault((block, part), len(number_of)) for block in each for part in parts]
            for each in self.blocks
        ]
        lengths = [len(each) * ENGINE_BLOCK + 1 for each in blocks]
        return BlockTrace(ENGINE_BLOCK, self.whole.arrivals_s, lengths, blocks, self.output_tokens)

    def lru_hit_rate(self, capacity: int | None) -> float:
        """Of all blocks that the engine is asked for, those that an LRU cache of so many has. None: no limit."""
        trace = self.in_engine_blocks
        cache = Lru(trace, [capacity])
        hits = sum(sum(cache.serve(blocks)) for blocks in trace.blocks)
        return hits / max(1, len(trace.asked))
