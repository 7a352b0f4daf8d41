"""The inline PTX of the multimem path: 128-bit accesses of eight elements, one vector for each thread.

A vector is eight neighbouring elements. Words are registers of 32 bits: four to a vector of bfloat16 or float16, eight
to one of float32. Every access has a predicate; a vector that is not wanted reads zeros and writes nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tokenweave.kernels.cuda.sharing import VECTOR_ELEMENTS

VECTOR = tl.constexpr(VECTOR_ELEMENTS)


@triton.jit
def operands(address, floats, is_wanted):
    return (
        address,
        floats[0],
        floats[1],
        floats[2],
        floats[3],
        floats[4],
        floats[5],
        floats[6],
        floats[7],
        is_wanted,
    )


@triton.jit
def load_sum(address, is_wanted, DTYPE: tl.constexpr):
    """The words of the ranks' sum at multicast addresses. The switch adds in float32 and rounds to DTYPE once."""
    if DTYPE == tl.bfloat16:
        return tl.inline_asm_elementwise(
            """{ .reg .pred %wanted; setp.ne.s32 %wanted, $5, 0;
            mov.b32 $0, 0; mov.b32 $1, 0; mov.b32 $2, 0; mov.b32 $3, 0;
            @%wanted multimem.ld_reduce.relaxed.sys.global.add.acc::f32.v4.bf16x2 {$0, $1, $2, $3}, [$4]; }""",
            "=&r,=&r,=&r,=&r,l,r",
            [address, is_wanted],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=False,
            pack=1,
        )
    elif DTYPE == tl.float16:
        return tl.inline_asm_elementwise(
            """{ .reg .pred %wanted; setp.ne.s32 %wanted, $5, 0;
            mov.b32 $0, 0; mov.b32 $1, 0; mov.b32 $2, 0; mov.b32 $3, 0;
            @%wanted multimem.ld_reduce.relaxed.sys.global.add.acc::f32.v4.f16x2 {$0, $1, $2, $3}, [$4]; }""",
            "=&r,=&r,=&r,=&r,l,r",
            [address, is_wanted],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=False,
            pack=1,
        )
    else:
        return tl.inline_asm_elementwise(
            """{ .reg .pred %wanted; setp.ne.s32 %wanted, $9, 0;
            mov.b32 $0, 0; mov.b32 $1, 0; mov.b32 $2, 0; mov.b32 $3, 0;
            mov.b32 $4, 0; mov.b32 $5, 0; mov.b32 $6, 0; mov.b32 $7, 0;
            @%wanted multimem.ld_reduce.relaxed.sys.global.add.v4.f32 {$0, $1, $2, $3}, [$8];
            @%wanted multimem.ld_reduce.relaxed.sys.global.add.v4.f32 {$4, $5, $6, $7}, [$8 + 16]; }""",
            "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,l,r",
            [address, is_wanted],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=False,
            pack=1,
        )


@triton.jit
def load_words(address, is_wanted, DTYPE: tl.constexpr):
    """The words of this rank's memory, as `load_sum` gives those of the ranks' sum."""
    if DTYPE == tl.float32:
        return tl.inline_asm_elementwise(
            """{ .reg .pred %wanted; setp.ne.s32 %wanted, $9, 0;
            mov.b32 $0, 0; mov.b32 $1, 0; mov.b32 $2, 0; mov.b32 $3, 0;
            mov.b32 $4, 0; mov.b32 $5, 0; mov.b32 $6, 0; mov.b32 $7, 0;
            @%wanted ld.global.v4.b32 {$0, $1, $2, $3}, [$8];
            @%wanted ld.global.v4.b32 {$4, $5, $6, $7}, [$8 + 16]; }""",
            "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,l,r",
            [address, is_wanted],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=False,
            pack=1,
        )
    else:
        return tl.inline_asm_elementwise(
            """{ .reg .pred %wanted; setp.ne.s32 %wanted, $5, 0;
            mov.b32 $0, 0; mov.b32 $1, 0; mov.b32 $2, 0; mov.b32 $3, 0;
            @%wanted ld.global.v4.b32 {$0, $1, $2, $3}, [$4]; }""",
            "=&r,=&r,=&r,=&r,l,r",
            [address, is_wanted],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=False,
            pack=1,
        )


@triton.jit
def to_floats(words, DTYPE: tl.constexpr, VECTORS: tl.constexpr):
    """The words of so many vectors to eight float32 for each."""
    floats = ()
    if DTYPE == tl.float32:
        for word in tl.static_range(8 * VECTORS):
            floats = floats + (words[word].to(tl.float32, bitcast=True),)
    else:
        for word in tl.static_range(4 * VECTORS):
            if DTYPE == tl.bfloat16:
                low = (words[word] << 16).to(tl.float32, bitcast=True)
                high = (words[word] & -65536).to(tl.float32, bitcast=True)
            else:
                low = words[word].to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
                high = (words[word] >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
            floats = floats + (low, high)
    return floats


@triton.jit
def store_to_all(address, floats, is_wanted, DTYPE: tl.constexpr):
    """Rounds eight float32 to DTYPE and stores them at multicast addresses: on every rank."""
    if DTYPE == tl.bfloat16:
        tl.inline_asm_elementwise(
            """{ .reg .pred %wanted; .reg .b32 %word<4>; setp.ne.s32 %wanted, $10, 0;
            cvt.rn.bf16x2.f32 %word0, $3, $2; cvt.rn.bf16x2.f32 %word1, $5, $4;
            cvt.rn.bf16x2.f32 %word2, $7, $6; cvt.rn.bf16x2.f32 %word3, $9, $8;
            @%wanted multimem.st.relaxed.sys.global.v4.bf16x2 [$1], {%word0, %word1, %word2, %word3};
            mov.b32 $0, 0; }""",
            "=r,l,f,f,f,f,f,f,f,f,r",
            operands(address, floats, is_wanted),
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    elif DTYPE == tl.float16:
        tl.inline_asm_elementwise(
            """{ .reg .pred %wanted; .reg .b32 %word<4>; setp.ne.s32 %wanted, $10, 0;
            cvt.rn.f16x2.f32 %word0, $3, $2; cvt.rn.f16x2.f32 %word1, $5, $4;
            cvt.rn.f16x2.f32 %word2, $7, $6; cvt.rn.f16x2.f32 %word3, $9, $8;
            @%wanted multimem.st.relaxed.sys.global.v4.f16x2 [$1], {%word0, %word1, %word2, %word3};
            mov.b32 $0, 0; }""",
            "=r,l,f,f,f,f,f,f,f,f,r",
            operands(address, floats, is_wanted),
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    else:
        tl.inline_asm_elementwise(
            """{ .reg .pred %wanted; setp.ne.s32 %wanted, $10, 0;
            @%wanted multimem.st.relaxed.sys.global.v4.f32 [$1], {$2, $3, $4, $5};
            @%wanted multimem.st.relaxed.sys.global.v4.f32 [$1 + 16], {$6, $7, $8, $9};
            mov.b32 $0, 0; }""",
            "=r,l,f,f,f,f,f,f,f,f,r",
            operands(address, floats, is_wanted),
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def load_floats(address, is_wanted):
    """Eight float32 of this rank's memory."""
    return to_floats(load_words(address, is_wanted, tl.float32), tl.float32, 1)


@triton.jit
def store_floats(address, floats, is_wanted):
    """Eight float32 to this rank's memory."""
    tl.inline_asm_elementwise(
        """{ .reg .pred %wanted; setp.ne.s32 %wanted, $10, 0;
        @%wanted st.global.v4.f32 [$1], {$2, $3, $4, $5};
        @%wanted st.global.v4.f32 [$1 + 16], {$6, $7, $8, $9};
        mov.b32 $0, 0; }""",
        "=r,l,f,f,f,f,f,f,f,f,r",
        operands(address, floats, is_wanted),
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
