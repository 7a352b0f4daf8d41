"""Sequence: the tokens of one request and how much of them the KV cache holds.

Invariants
1. `num_computed <= num_tokens <= max_total`; `table` has the KV of tokens 0..num_computed-1, and of `ready`.
2. A sequence with no blocks has `num_computed == 0`.
3. The last token never needs KV, so a running sequence occupies at most `max_total - 1` tokens.
4. `tokens` has `num_pending` entries behind those of `num_tokens`: a device has sampled them and the host does not know
   them yet. Such an entry is -1 - row, by the row of the pass that it was sampled in.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np
import numpy.typing as npt

from interlace.engine.cache.block_table import BlockTable
from interlace.engine.cache.names import TextNames
from interlace.engine.sampling_params import SamplingParams
from tokenweave.kernels import BLOCK_SIZE

Int32Array = npt.NDArray[np.int32]
NO_BLOCKS = range(0)


def max_total_tokens(num_prompt: int, params: SamplingParams, max_model_len: int) -> int:
    """The most tokens a sequence may come to, prompt and output."""
    if params.max_tokens is None:
        return max_model_len
    return min(max_model_len, num_prompt + params.max_tokens)


class Sequence:
    """Tokens in one buffer that never moves: the prompt, then what was generated.

    `seed` and a token's output index decide its random number. `first_scheduled_s` is of `perf_counter`. `names` are
    those of its full blocks; without them it neither finds blocks nor leaves any to be found.
    """

    def __init__(
        self,
        request_id: str,
        prompt: SequenceOf[int],
        params: SamplingParams,
        seed: int,
        max_model_len: int,
        names: TextNames | None = None,
    ) -> None:
        self.request_id = request_id
        self.params = params
        self.seed = seed
        self.num_prompt = len(prompt)
        self.num_tokens = len(prompt)
        self.num_pending = 0
        self.num_computed = 0
        self.max_total = max_total_tokens(self.num_prompt, params, max_model_len)
        self.tokens: Int32Array = np.empty(self.max_total, dtype=np.int32)
        self.tokens[: self.num_prompt] = prompt
        self.table = BlockTable(self.max_total)
        self.names = names
        self.num_published = 0  # blocks
        self.num_cached = 0  # tokens of the prompt that were found, and not computed
        self.num_fetched = 0  # of these, those that a tier below local memory had
        self.fetch_s = self.fetch_waited_s = 0.0
        self.ready = NO_BLOCKS  # blocks behind those computed that have been fetched already: their places in the table
        self.num_preemptions = 0
        self.first_scheduled_s: float | None = None

    @property
    def num_output(self) -> int:
        return self.num_tokens - self.num_prompt

    @property
    def num_generated(self) -> int:
        """Tokens of the output, with those that the host does not know yet."""
        return self.num_output + self.num_pending

    @property
    def output_ids(self) -> Int32Array:  # (num_output,)
        return self.tokens[self.num_prompt : self.num_tokens]

    @property
    def num_uncomputed(self) -> int:
        return self.num_tokens + self.num_pending - self.num_computed

    @property
    def is_full(self) -> bool:
        """It has every token it was allowed."""
        return self.num_tokens >= self.max_total

    @property
    def is_full_then(self) -> bool:
        """It will have every token it was allowed, once the pending ones are known."""
        return self.num_tokens + self.num_pending >= self.max_total

    def append_token(self, token_id: int) -> None:
        """The next token; where one was pending, the first of these is known now."""
        self.tokens[self.num_tokens] = token_id
        self.num_tokens += 1
        self.num_pending = max(0, self.num_pending - 1)

    def expect_token(self, row: int) -> None:
        """The next token is being sampled in `row` of a pass; `append_token` will say which it is."""
        self.tokens[self.num_tokens + self.num_pending] = -1 - row
        self.num_pending += 1

    @property
    def is_new(self) -> bool:
        """It has computed nothing that it has lost since, so what it finds is another request's."""
        return self.num_generated == 0 and self.num_preemptions == 0

    def count_fetched(self, num_tokens: int) -> None:
        """`num_tokens` of it come from a tier below local memory."""
        if self.is_new:
            self.num_cached += num_tokens
            self.num_fetched += num_tokens

    def names_before(self, num_tokens: int) -> list[bytes]:
        """The names of the blocks that are full with its first `num_tokens` tokens, which are known."""
        if self.names is None:
            return []
        return self.names.first(num_tokens // BLOCK_SIZE, self.tokens)

    def take_found(self, blocks: list[int]) -> None:
        """Begins with `blocks`, whose keys and values are there."""
        self.table.extend(blocks)
        self.num_published = len(blocks)
        self.num_computed = len(blocks) * BLOCK_SIZE

    def compute_to(self, num_tokens: int) -> None:
        """Its first `num_tokens` tokens are in the cache now, and what was fetched behind them."""
        self.num_computed = num_tokens
        if self.ready and num_tokens >= self.ready.start * BLOCK_SIZE:
            self.num_computed = max(num_tokens, self.ready.stop * BLOCK_SIZE)
            self.ready = NO_BLOCKS

    def lose_fetched(self) -> None:
        """A block that was fetched, and is not computed to yet, is not there: none of these is read."""
        self.count_fetched(-len(self.ready) * BLOCK_SIZE)
        self.ready = NO_BLOCKS

    def drop_blocks(self) -> list[int]:
        """Forgets its cache; the blocks are the caller's to free."""
        self.ready = NO_BLOCKS
        self.num_computed = self.num_published = 0
        return self.table.clear()
