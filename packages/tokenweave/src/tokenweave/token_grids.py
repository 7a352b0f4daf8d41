"""The token counts that a wave table is measured at."""

from __future__ import annotations

from tokenweave.errors import TuneError

DENSE_TILES = 4  # every count up to here, in row tiles: where waves matter most
WAVE_TILES = 32  # on GPUs, both sides of every row tile up to so many
GROWTH = 2**0.25  # from each count to the next above those


def token_grid(max_tokens: int, row_tile: int) -> tuple[int, ...]:
    """Token counts to measure at: every one at first, then the last of a wave and the first of the next, ever farther
    apart."""
    if max_tokens < 1 or row_tile < 1:
        raise TuneError(f"got max_tokens={max_tokens}, row_tile={row_tile}; expected at least 1 of each")
    dense = DENSE_TILES * row_tile
    found = {*range(1, min(dense, max_tokens) + 1), max_tokens}
    at = float(dense)
    while (at := at * GROWTH) < max_tokens:
        count = round(at / row_tile) * row_tile
        found |= {count} if count > 8 * dense else {count, count + 1}
    return tuple(sorted(count for count in found if count <= max_tokens))


def device_grid(max_tokens: int, row_tile: int) -> tuple[int, ...]:
    """The token counts of a GPU: powers of two within the first row tile, then the last of a tile and the first of the
    next, tile by tile for `WAVE_TILES`, then ever farther apart.

    A tile of rows is as many thread blocks as a product has tiles of columns, and a wave as many blocks as the device
    has SMs: so a wave ends with some of the tiles, other ones for each product, and both sides of each show which.
    """
    if max_tokens < 1 or row_tile < 1:
        raise TuneError(f"got max_tokens={max_tokens}, row_tile={row_tile}; expected at least 1 of each")
    found = {max_tokens, *(1 << power for power in range(row_tile.bit_length()))}
    for tile in range(1, WAVE_TILES + 1):
        found |= {tile * row_tile, tile * row_tile + 1}
    at = float(WAVE_TILES * row_tile)
    while (at := at * GROWTH) < max_tokens:
        found.add(round(at / row_tile) * row_tile)
    return tuple(sorted(count for count in found if count <= max_tokens))
