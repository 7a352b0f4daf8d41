"""The arena of packed weights: aligned, zero, disjoint, and given back with the last tensor."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenweave.kernels import memory
from tokenweave.kernels.memory import HUGE_PAGE_BYTES, LINE_BYTES, Arena


@given(sizes=st.lists(st.integers(0, 9000), min_size=1, max_size=20))
def test_what_an_arena_gives_is_zero_aligned_and_nobody_elses(sizes: list[int]) -> None:
    arena = Arena(slab_bytes=16_384)  # so that some lists need several slabs, and some tensors their own
    taken = [arena.take(size) for size in sizes]
    for mark, (tensor, size) in enumerate(zip(taken, sizes, strict=True), start=1):
        assert tensor.numel() == size
        assert not tensor.any()
        assert size == 0 or tensor.data_ptr() % LINE_BYTES == 0
        tensor.fill_(mark)
    for mark, tensor in enumerate(taken, start=1):
        assert (tensor == mark).all()


def test_a_slab_begins_on_a_huge_page() -> None:
    assert Arena().take(100).data_ptr() % HUGE_PAGE_BYTES == 0


def test_a_tensor_outlives_its_arena() -> None:
    arena = Arena()
    tensor = arena.take(1000)
    tensor.fill_(7)
    del arena
    assert (tensor == 7).all()


def test_the_pages_of_a_large_tensor_go_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever packs layer after layer, and keeps none, has one in memory."""
    mapped: list[weakref.ref[torch.UntypedStorage]] = []

    def noted(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        pages = torch.zeros(tuple(shape), dtype=dtype)
        mapped.append(weakref.ref(pages.untyped_storage()))
        return pages

    monkeypatch.setattr(memory, "lazy_zeros", noted)
    arena = Arena(slab_bytes=1024)
    for _ in range(3):
        tensor = arena.take(5000)
        assert sum(storage() is not None for storage in mapped) == 1
        del tensor
    assert not [storage for storage in mapped if storage() is not None]
