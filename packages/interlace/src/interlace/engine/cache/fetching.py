"""Fetching: how much of what the tiers have of a prompt is fetched in a pass, and how much is computed beside it.

A prompt's blocks that are found below are computed from the front while they are fetched from the back, until the two
meet (Cake, arXiv 2410.03065). Both happen in one pass where its tokens allow it: the rows in front are computed with
those behind what is fetched. Otherwise a pass computes as many rows as it may, and fetches from the back meanwhile.

Fetching all and computing all are the two ends of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tokenweave.kernels import BLOCK_SIZE


class Question(NamedTuple):
    """One prompt's next pass. Blocks are counted from the first that is found; lengths are in tokens."""

    others: Sequence[tuple[int, int]]  # of the pass so far: new tokens and keys of each sequence
    num_keys: int  # of the prompt, computed
    num_before: int  # tokens to compute in front of the first block that is found
    tiers: Sequence[int]  # of each block that is found, the tier that has it
    behind: int  # the position behind them, and behind what was fetched before
    end: int  # the prompt's length
    budget: int  # tokens that the pass has left

    @property
    def most_in_front(self) -> int:
        """Blocks that a pass can compute in front, with a token at least behind what is fetched."""
        return min(len(self.tiers), (self.budget - 1 - self.num_before) // BLOCK_SIZE)


class Answer(NamedTuple):
    """Blocks to fetch from the back. Those in front are computed, in this pass or in later ones, which ask anew."""

    num_fetched: int


Chooser = Callable[[Question], Answer]


def fetch_all(question: Question) -> Answer:
    """Fetches whatever is found."""
    return Answer(len(question.tiers))
