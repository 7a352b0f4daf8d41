"""Slots, blocks and tables name the same place of a token."""

from __future__ import annotations

import torch

from tokenweave.kernels import blocks_for, slots_of
from tokenweave.kernels.paging import place_of


def test_blocks_hold_16_tokens() -> None:
    assert [blocks_for(count) for count in (0, 1, 16, 17, 32)] == [0, 1, 1, 2, 2]


def test_a_slot_leads_back_to_its_block_and_offset() -> None:
    tables = torch.tensor([[4, 2], [7, 1]], dtype=torch.int32)
    slots = slots_of(tables, torch.tensor([0, 0, 1]), torch.tensor([3, 16, 31]))
    assert slots.tolist() == [4 * 16 + 3, 2 * 16, 1 * 16 + 15]
    block, offset = place_of(slots)
    assert block.tolist() == [4, 2, 1]
    assert offset.tolist() == [3, 0, 15]
