// The first of two kernels in builds with tiles, the second in the others.
#pragma once

#if defined(TW_TILES)
#define TW_TILES_OR(tiles, vectors) tiles
#else
#define TW_TILES_OR(tiles, vectors) vectors
#endif
