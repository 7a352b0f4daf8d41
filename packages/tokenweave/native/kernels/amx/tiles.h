// The tile operations of AMX that the kernels use: by the instructions where this build has them, otherwise in plain
// C++, to the bit as Intel's manual defines them (Software Developer's Manual, volume 2: LDTILECFG, TILELOADD,
// TILESTORED, TILEZERO, TDPBF16PS, TDPBSSD, TILERELEASE). Only the payload of a NaN is left open there, and here.
//
// Thread safety: a Tiles is the calling thread's own; one at a time on each thread.
// Invariants:
//  1. Tiles are configured only as long as a Tiles lives: a thread that sleeps, or a process that forks, has none,
//  and its switches save no 8 KiB of them.
//  2. configure() sets every tile to zero.
#pragma once

#include "../simd.h"

namespace tokenweave::TW_ISA {

constexpr int NUM_TILES = 8;
constexpr int TILE_ROWS_MAX = 16;
constexpr int TILE_ROW_BYTES = 64;

// What LDTILECFG reads.
struct alignas(64) TileConfiguration {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[NUM_TILES] = {};
    uint16_t reserved_row_bytes[NUM_TILES] = {};
    uint8_t rows[NUM_TILES] = {};
    uint8_t reserved_rows[NUM_TILES] = {};

    void shape(int tile, int num_rows, int num_row_bytes) {
        rows[tile] = static_cast<uint8_t>(num_rows);
        row_bytes[tile] = static_cast<uint16_t>(num_row_bytes);
    }
};
static_assert(sizeof(TileConfiguration) == 64);

#if defined(__AMX_BF16__) && defined(__AMX_INT8__)

// The compiler's own intrinsics take a tile's number as a literal only; these take a template's.
class Tiles {
  public:
    Tiles() = default;
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
    ~Tiles() { __asm__ volatile("tilerelease" ::: "memory"); }

    void configure(const TileConfiguration& configuration) {
        __asm__ volatile("ldtilecfg %0" : : "m"(configuration));
    }
    template <int TILE>
    __attribute__((always_inline)) void zero() {
        __asm__ volatile("tilezero %%tmm%c0" : : "i"(TILE));
    }
    template <int TILE>
    __attribute__((always_inline)) void load(const void* from, int64_t stride_bytes) {
        __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0"
                         :
                         : "i"(TILE), "r"(from), "r"(stride_bytes)
                         : "memory");
    }
    template <int TILE>
    __attribute__((always_inline)) void store(void* to, int64_t stride_bytes) {
        __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)"
                         :
                         : "i"(TILE), "r"(to), "r"(stride_bytes)
                         : "memory");
    }
    // C += A * B: A has rows of words along k, B a row for each word, a word being two bfloat16.
    template <int C, int A, int B>
    __attribute__((always_inline)) void multiply_bf16() {
        __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
    }
    // The same in int32, which wraps: a word is four signed bytes.
    template <int C, int A, int B>
    __attribute__((always_inline)) void multiply_i8() {
        __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
    }
};

#else

struct Tile {
    alignas(64) uint32_t words[TILE_ROWS_MAX][TILE_ROW_BYTES / 4];
};

TW_INLINE float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

// a * b + c, rounded once. The product of two bfloat16 is exact in a double. The sum is rounded to 53 bits and then
// to 24, which is the same as once to 24 since 53 >= 2 * 24 + 2 (Figueroa, SIGNUM Newsletter 30(3), 1995).
TW_INLINE float fused_of_bf16(float a, float b, float c) {
    return static_cast<float>(static_cast<double>(a) * static_cast<double>(b) + static_cast<double>(c));
}

// One row of C. A word's halves are summed apart, each by a chain of fused multiply-adds from 0; the two sums are
// added, then that to what the row has. A function of its own, so that nothing in it is moved to where denormals
// count.
__attribute__((noinline)) static void multiply_tile_row(uint32_t* c, const uint32_t* a, int words,
                                                        const Tile& b) {
    constexpr int COLUMNS = TILE_ROW_BYTES / 4;
    float even[COLUMNS] = {}, odd[COLUMNS] = {}, row[COLUMNS];
    for (int k = 0; k < words; ++k) {
        const float low = float_of(a[k] << 16), high = float_of(a[k] & 0xffff0000u);
        for (int n = 0; n < COLUMNS; ++n) {
            even[n] = fused_of_bf16(low, float_of(b.words[k][n] << 16), even[n]);
            odd[n] = fused_of_bf16(high, float_of(b.words[k][n] & 0xffff0000u), odd[n]);
        }
    }
    memcpy(row, c, sizeof(row));
    for (int n = 0; n < COLUMNS; ++n) row[n] = row[n] + (even[n] + odd[n]);
    memcpy(c, row, sizeof(row));
}

// The products of four signed bytes, summed.
TW_INLINE uint32_t dot_of_i8(uint32_t a, uint32_t b) {
    int32_t sum = 0;
    for (int shift = 0; shift < 32; shift += 8)
        sum += static_cast<int8_t>(a >> shift) * static_cast<int8_t>(b >> shift);
    return static_cast<uint32_t>(sum);
}

class Tiles {
  public:
    Tiles() = default;
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;

    void configure(const TileConfiguration& configuration) {
        configuration_ = configuration;
        memset(tiles_, 0, sizeof(tiles_));
    }
    template <int TILE>
    void zero() {
        memset(&tiles_[TILE], 0, sizeof(Tile));
    }
    template <int TILE>
    void load(const void* from, int64_t stride_bytes) {
        zero<TILE>();
        for (int row = 0; row < rows(TILE); ++row)
            memcpy(tiles_[TILE].words[row], static_cast<const char*>(from) + row * stride_bytes,
                   row_bytes(TILE));
    }
    template <int TILE>
    void store(void* to, int64_t stride_bytes) {
        for (int row = 0; row < rows(TILE); ++row)
            memcpy(static_cast<char*>(to) + row * stride_bytes, tiles_[TILE].words[row], row_bytes(TILE));
    }
    template <int C, int A, int B>
    void multiply_bf16() {
        check_shapes(C, A, B);
        // Every exception masked, to nearest even, denormals 0 both as operands and as results: whatever the
        // thread has set, as on the processor.
        constexpr unsigned TILE_MXCSR = 0x9fc0;
        const unsigned before = _mm_getcsr();
        _mm_setcsr(TILE_MXCSR);
        for (int row = 0; row < rows(C); ++row)
            multiply_tile_row(tiles_[C].words[row], tiles_[A].words[row], rows(B), tiles_[B]);
        _mm_setcsr(before);
    }
    template <int C, int A, int B>
    void multiply_i8() {
        check_shapes(C, A, B);
        for (int row = 0; row < rows(C); ++row)
            for (int k = 0; k < rows(B); ++k)
                for (int n = 0; n < row_bytes(C) / 4; ++n)
                    tiles_[C].words[row][n] += dot_of_i8(tiles_[A].words[row][k], tiles_[B].words[k][n]);
    }

  private:
    // What the processor answers with an invalid opcode.
    void check_shapes(int c, int a, int b) const {
        if (rows(c) != rows(a) || row_bytes(c) != row_bytes(b) || row_bytes(a) != 4 * rows(b) || rows(c) == 0)
            __builtin_trap();
    }
    int rows(int tile) const { return configuration_.rows[tile]; }
    int row_bytes(int tile) const { return configuration_.row_bytes[tile]; }

    TileConfiguration configuration_;
    Tile tiles_[NUM_TILES];
};

#endif

}  // namespace tokenweave::TW_ISA
