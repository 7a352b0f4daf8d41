"""The token counts of a table: enough of them where time grows in steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweave.errors import TuneError
from tokenweave.token_grids import device_grid, token_grid


@given(max_tokens=st.integers(1, 9000), row_tile=st.integers(1, 64))
def test_the_grid_has_every_small_count_both_sides_of_waves_and_the_end(
    max_tokens: int, row_tile: int
) -> None:
    grid = token_grid(max_tokens, row_tile)
    assert grid[0] == 1
    assert grid[-1] == max_tokens
    assert list(grid) == sorted(set(grid))
    assert set(range(1, min(max_tokens, 4 * row_tile) + 1)) <= set(grid)
    for count in grid:
        if count > 4 * row_tile and count < max_tokens:
            assert count % row_tile in (0, 1 % row_tile)


def test_a_grid_of_nothing_is_refused() -> None:
    with pytest.raises(TuneError, match="max_tokens=0"):
        token_grid(0, 12)


def test_a_gpus_grid_has_both_sides_of_every_tile() -> None:
    grid = device_grid(4096, 128)
    assert grid[:8] == (1, 2, 4, 8, 16, 32, 64, 128)
    assert {count + side for count in range(128, 4096, 128) for side in (0, 1)} <= set(grid)
    assert grid[-1] == 4096
    assert len(device_grid(16384, 128)) < 90
    assert device_grid(5, 128) == (1, 2, 4, 5)
    with pytest.raises(TuneError, match="row_tile=0"):
        device_grid(5, 0)
