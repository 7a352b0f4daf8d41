"""BlockManager: which blocks of the KV cache are free, which are in tables, and which are kept for texts to come.

A full block may be published under its name (see `names`). Tables that need what it holds share it. When no table has
it any more it is kept, and can be found, until its memory is needed: blocks that were left longest ago go first, and of
one text its last block goes first.

Invariants (`check` verifies 1 and 2 against the owners' block tables)
1. A block is in as many tables as it is counted for. One that is in none is free or kept, never both.
2. A name is of one block. Every kept block has a name, no free one has.
3. A table that has a published block has the block of its parent's name, unless that was withdrawn: `publish` gives the
   one to have. So the blocks that are kept can all be taken, and in the order in which they were left none is taken
   before its children.

Thread safety: none; it belongs to the scheduler's thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from interlace.errors import CacheTooSmall, EngineError
from tokenweave.kernels import BLOCK_SIZE


class BlockManager:
    """Hands out block numbers 0..num_blocks-1: the last one freed first (its lines are warmest), kept ones last."""

    def __init__(self, num_blocks: int, on_evict: Callable[[bytes, int], None] | None = None) -> None:
        """`on_evict` is told the name of each block whose memory is needed, and the block, before it is handed out."""
        if num_blocks < 1:
            raise CacheTooSmall(f"a KV cache of {num_blocks} blocks: expected at least 1; raise kv_cache_gb")
        self.num_blocks = num_blocks
        self._on_evict = on_evict
        self._free = list(range(num_blocks - 1, -1, -1))
        self._num_tables = [0] * num_blocks
        self._name_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()  # left longest ago first

    @property
    def num_tokens(self) -> int:
        """Tokens that all blocks together hold."""
        return self.num_blocks * BLOCK_SIZE

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can give."""
        return len(self._free) + len(self._kept)

    @property
    def num_kept(self) -> int:
        """Those of `num_free` that can still be found."""
        return len(self._kept)

    def allocate(self, count: int) -> list[int]:
        """`count` blocks, now the caller's. Raises CacheTooSmall, taking none, when fewer are free."""
        if count > self.num_free:
            raise CacheTooSmall(f"{count} KV blocks wanted, {self.num_free} free of {self.num_blocks}")
        blocks = [self._take() for _ in range(count)]
        for block in blocks:
            self._num_tables[block] = 1
        return blocks

    def free(self, blocks: Sequence[int]) -> None:
        """Takes a table's blocks back, which are in the order of its text.

        Raises EngineError on a block that is in no table.
        """
        for block in reversed(blocks):
            if not self._num_tables[block]:
                raise EngineError(f"KV block {block} was freed twice; this is a bug in the scheduler")
            self._num_tables[block] -= 1
            if not self._num_tables[block]:
                self._leave(block)

    def find(self, names: Iterable[bytes]) -> list[int]:
        """The blocks of the first of `names`, as far as they go without a gap."""
        found: list[int] = []
        for name in names:
            block = self._block_of.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def block_of(self, name: bytes) -> int | None:
        """The block that is found under `name`."""
        return self._block_of.get(name)

    def num_kept_of(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` are in no table: `share` takes these out of `num_free`."""
        return sum(block in self._kept for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Counts published blocks for one table more."""
        for block in blocks:
            self._kept.pop(block, None)
            self._num_tables[block] += 1

    def publish(self, block: int, name: bytes) -> int:
        """Has a table's `block`, which is full, found under `name`. Returns the block that the table has from now on.

        That is another where one was published under this name before: it holds the same.
        """
        other = self._block_of.setdefault(name, block)
        if other == block:
            self._name_of[block] = name
        else:
            self.share([other])
            self.free([block])
        return other

    def withdraw(self, names: Iterable[bytes]) -> None:
        """Has no block found under any of `names`. Tables keep theirs."""
        for name in names:
            block = self._block_of.get(name)
            if block is not None:
                self._unname(block)
                if block in self._kept:
                    del self._kept[block]
                    self._free.append(block)

    def forget(self) -> None:
        """Has no block found any more. Tables keep theirs."""
        self.withdraw(list(self._block_of))

    def check(self, tables: Iterable[Iterable[int]]) -> None:
        """Raises EngineError unless `tables` have the blocks that are counted for them, and no block is lost."""
        counted = [0] * self.num_blocks
        for table in tables:
            for block in table:
                counted[block] += 1
        outside = [block for block, count in enumerate(counted) if not count]
        names = {self._name_of.get(block) for block in self._kept}
        is_sound = (
            counted == self._num_tables
            and sorted([*self._free, *self._kept]) == outside
            and None not in names
            and {name: block for block, name in self._name_of.items()} == self._block_of
            and not self._name_of.keys() & set(self._free)
        )
        if not is_sound:
            raise EngineError(
                f"KV blocks are leaked or owned twice: {self.num_blocks - len(outside)} held, {len(self._free)} free, "
                f"{len(self._kept)} kept, {self.num_blocks} exist; this is a bug in the scheduler"
            )

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        block, _ = self._kept.popitem(last=False)
        if self._on_evict is not None:
            self._on_evict(self._name_of[block], block)
        self._unname(block)
        return block

    def _leave(self, block: int) -> None:
        """No table has `block` any more."""
        if block in self._name_of:
            self._kept[block] = None
        else:
            self._free.append(block)

    def _unname(self, block: int) -> None:
        del self._block_of[self._name_of.pop(block)]
