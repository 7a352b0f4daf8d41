"""Drives a rank group without an engine: the tests decide what each forward pass holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from interlace.engine.config import EngineConfig, EngineOptions
from interlace.engine.ranks.group import RankGroup
from interlace.engine.ranks.launch import start
from interlace.models.batch import ForwardBatch
from tokenweave.kernels import BLOCK_SIZE


@contextmanager
def ranks_in_threads(path: Path, tp: int, **options: Unpack[EngineOptions]) -> Iterator[RankGroup]:
    """The ranks of a model in float32, in threads of this process."""
    communicator = "thread" if tp > 1 else "null"
    settings: EngineOptions = {"dtype": "float32", "num_kv_blocks": 16, "threads": 1, **options}
    group = start(EngineConfig(str(path), tp=tp, communicator=communicator, **settings))
    try:
        yield group
    finally:
        group.close()


class Driver:
    """Sequences with blocks of their own, dealt out interleaved so that no block table is contiguous."""

    def __init__(
        self,
        group: RankGroup,
        prompts: Sequence[Sequence[int]],
        prompt_lens: Sequence[int] | None = None,
    ) -> None:
        """`prompt_lens` says how much of each sequence is its prompt; the rest counts as generated. None: all."""
        self.group, self.prompts = group, prompts
        self.prompt_lens = [len(prompt) for prompt in prompts] if prompt_lens is None else prompt_lens
        self.done = [0] * len(prompts)
        self.tables: list[list[int]] = [[] for _ in prompts]
        free = list(reversed(range(group.num_blocks)))
        needed = [-(-len(prompt) // BLOCK_SIZE) for prompt in prompts]
        for index in range(max(needed)):
            for table, count in zip(self.tables, needed, strict=True):
                if index < count:
                    table.append(free.pop())

    def run(self, chunks: Sequence[tuple[int, int]], split: int | None = None) -> list[Tensor]:
        """One pass over the next `n` tokens of sequence `s`, for each (s, n). Logits (n, vocab) of each."""
        counts = [n for _, n in chunks]
        return list(self.logits(chunks, range(sum(counts)), split).split(counts))

    def logits(
        self, chunks: Sequence[tuple[int, int]], wanted: Sequence[int], split: int | None = None
    ) -> Tensor:
        """As `run`, but the logits of the rows `wanted` of the batch alone: (len(wanted), vocab)."""
        rows: dict[str, list[int]] = {"token_ids": [], "positions": [], "slots": []}
        lengths, query_start = [], [0]
        for s, n in chunks:
            positions = range(self.done[s], self.done[s] + n)
            rows["token_ids"] += [self.prompts[s][p] for p in positions]
            rows["positions"] += positions
            rows["slots"] += [
                self.tables[s][p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in positions
            ]
            self.done[s] += n
            lengths.append(self.done[s])
            query_start.append(query_start[-1] + n)
        width = max(len(self.tables[s]) for s, _ in chunks)
        tables = [self.tables[s] + [0] * (width - len(self.tables[s])) for s, _ in chunks]
        batch = ForwardBatch(
            **{name: torch.tensor(values, dtype=torch.int32) for name, values in rows.items()},
            query_start=torch.tensor(query_start, dtype=torch.int32),
            seq_lens=torch.tensor(lengths, dtype=torch.int32),
            block_tables=torch.tensor(tables, dtype=torch.int32),
            logit_rows=torch.tensor(list(wanted), dtype=torch.int32),
            prompt_lens=torch.tensor([self.prompt_lens[s] for s, _ in chunks], dtype=torch.int32),
            split=split,
        )
        return self.group.execute(batch)


def logits_of(group: RankGroup, prompts: Sequence[Sequence[int]], chunk: int | None = None) -> list[Tensor]:
    """Logits (len(prompt), vocab) of each prompt, all in one batch, `chunk` tokens of each at a time."""
    driver = Driver(group, prompts)
    parts: list[list[Tensor]] = [[] for _ in prompts]
    while pending := [s for s, prompt in enumerate(prompts) if driver.done[s] < len(prompt)]:
        left = {s: len(prompts[s]) - driver.done[s] for s in pending}
        chunks = [(s, left[s] if chunk is None else min(chunk, left[s])) for s in pending]
        for (s, _), logits in zip(chunks, driver.run(chunks), strict=True):
            parts[s].append(logits.clone())
    return [torch.cat(part) for part in parts]
