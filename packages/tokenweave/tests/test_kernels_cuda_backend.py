"""The kernels of CudaKernels, compiled for sm_80 and sm_90 without a GPU: what they need, and what comes out."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from support.cubins import (
    BLACKWELL,
    CAPABILITIES,
    REGISTERS_PER_SM,
    SINCE_HOPPER,
    Compile,
    Compiled,
    assert_holds,
    some_fast,
)
from tokenweave.kernels import HeadLayout
from tokenweave.kernels.cuda.backend import activation, attention, gather, norms, rotary

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def layout(num_heads: int, num_kv_heads: int, head_dim: int = 128) -> HeadLayout:
    return HeadLayout(num_heads, tuple(h * num_kv_heads // num_heads for h in range(num_heads)), head_dim)


# The heads of a rank, a window, a cap.
Attention = tuple[HeadLayout, bool, bool]
SHAPES: dict[str, Attention] = {
    "Llama-3-8B": (layout(32, 8), False, False),
    "Llama-3-70B on 8 ranks": (layout(8, 1), False, False),
    "Qwen2.5-7B": (layout(28, 4), False, False),
    "Qwen3-0.6B": (layout(16, 8), False, False),
    "Mixtral-8x7B": (layout(32, 8), True, False),
    "SmolLM2-135M": (layout(9, 3, 64), False, False),
    "SmolLM2-135M on 2 ranks": (HeadLayout(5, (0, 0, 0, 1, 1), 64), False, False),
    "Gemma-2-9B": (layout(16, 8, 256), True, True),
}
HIDDEN_SIZES = [576, 3584, 4096, 5120, 8192, 12288, 18432]


def compile_attention(
    compiled: Compile, shape: Attention, dtype: torch.dtype, capability: int, is_shared: bool
) -> Compiled:
    heads, has_window, has_cap = shape
    element = f"*{NAMES[dtype]}"
    types = {"q": element, "cache": element, "out": element, "states": "*fp32", "sums": "*fp32"}
    types |= dict.fromkeys(("block_tables", "query_start", "seq_lens", "group_start"), "*i32")
    numbers = ("num_seqs", "num_tokens", "max_blocks", "num_blocks", "num_partitions", "q_stride")
    types |= dict.fromkeys(numbers, "i32") | {"scale": "fp32", "cap": "fp32", "window": "i32"}
    options = attention.attention_options(heads, dtype)
    options |= {"HAS_WINDOW": has_window, "HAS_CAP": has_cap, "IS_SHARED": is_shared}
    return compiled(attention.attend, types, options, capability=capability, multiples=["q_stride"])


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", some_fast(SHAPES, "Llama-3-8B"))
def test_attention_of_published_models_multiplies_on_matrix_units_and_does_not_spill(
    compiled: Compile, name: str, capability: int, is_shared: bool
) -> None:
    code = compile_attention(compiled, SHAPES[name], torch.bfloat16, capability, is_shared)
    assert_holds(code, capability)
    warp_groups, warps = code.count_sass(r"HGMMA\..*"), code.count_sass(r"HMMA\..*")
    by_warp_groups = (
        capability == 90 and SHAPES[name][0].head_dim <= 128
    )  # they take 64 rows, too many for larger heads
    assert (warp_groups > 0, warps > 0) == (by_warp_groups, not by_warp_groups)
    assert (
        code.count_sass(r"LDGSTS\.E.*128") > 0
    )  # keys and values come 16 bytes at a time, past the registers


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", some_fast(["Llama-3-8B", "SmolLM2-135M"], "Llama-3-8B"))
def test_attention_in_float32_keeps_three_parts_of_each_factor_and_does_not_spill(
    compiled: Compile, name: str, capability: int
) -> None:
    code = compile_attention(compiled, SHAPES[name], torch.float32, capability, False)
    assert_holds(code, capability)
    assert code.count_sass(r"H?G?MMA.*TF32.*") > 0


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_attention_in_float16_multiplies_on_matrix_units_and_does_not_spill(
    compiled: Compile, capability: int
) -> None:
    code = compile_attention(compiled, SHAPES["Llama-3-8B"], torch.float16, capability, False)
    assert_holds(code, capability)
    assert code.count_sass(r"H?G?MMA\..*F32.*") > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Llama-3-8B", "Llama-3-70B on 8 ranks", "Mixtral-8x7B"])
def test_attention_compiles_for_blackwell(compiled: Compile, name: str) -> None:
    code = compile_attention(compiled, SHAPES[name], torch.bfloat16, BLACKWELL, False)
    assert_holds(code, BLACKWELL)
    assert code.count_sass(r"UTCHMMA(\..*)?") > 0


@pytest.mark.parametrize("has_window", [False, True])
@pytest.mark.parametrize("capability", SINCE_HOPPER)
def test_joining_partitions_needs_few_registers(compiled: Compile, has_window: bool, capability: int) -> None:
    types = {"states": "*fp32", "sums": "*fp32", "out": "*bf16", "query_start": "*i32", "seq_lens": "*i32"}
    types |= dict.fromkeys(("num_seqs", "max_blocks", "num_partitions", "window"), "i32")
    options = attention.join_options(layout(32, 8), torch.bfloat16) | {"HAS_WINDOW": has_window}
    code = compiled(attention.join_partitions, types, options, capability=capability)
    assert_holds(code, capability)
    assert code.registers <= 128  # 16 CTAs of one warp fit an SM


@pytest.mark.parametrize("capability", [*CAPABILITIES, pytest.param(BLACKWELL, marks=pytest.mark.slow)])
@pytest.mark.parametrize("hidden_size", some_fast(HIDDEN_SIZES, 4096, 12288))
def test_norms_of_any_hidden_size_keep_to_their_registers(
    compiled: Compile, hidden_size: int, capability: int
) -> None:
    types = {"x": "*bf16", "residual": "*fp32", "out": "*bf16", "weight": "*bf16", "post_weight": "*bf16"}
    strides = ["x_stride", "residual_stride", "out_stride"]
    types |= dict.fromkeys(strides, "i32") | {"eps": "fp32"}
    kernel = norms.norm_long_row if hidden_size > norms.MAX_ROW else norms.norm_row
    options = norms.norm_options(hidden_size) | {"HAS_RESIDUAL": True, "HAS_WEIGHT": True, "HAS_POST": True}
    code = compiled(kernel, types, options, capability=capability, multiples=strides)
    assert_holds(code, capability)
    assert 2 * code.registers * code.threads <= REGISTERS_PER_SM  # two CTAs fit an SM
    if hidden_size % 8 == 0:
        assert code.count_sass(r"LDG\.E\.128(\..*)?") > 0


@pytest.mark.parametrize("is_silu", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("capability", SINCE_HOPPER)
def test_gates_read_and_write_16_bytes_at_a_time(
    compiled: Compile, dtype: torch.dtype, is_silu: bool, capability: int
) -> None:
    types = dict.fromkeys(("gate", "up"), f"*{NAMES[dtype]}") | {
        "out": "*bf16",
        "stride": "i32",
        "width": "i32",
    }
    options = {"IS_SILU": is_silu, **activation.OPTIONS}
    code = compiled(
        activation.gate_rows, types, options, multiples=["stride", "width"], capability=capability
    )
    assert_holds(code, capability)
    assert code.registers <= 64
    assert code.count_sass(r"LDG\.E\.128(\..*)?") == 2 * dtype.itemsize // 2
    assert code.count_sass(r"STG\.E\.128") == 1


@pytest.mark.parametrize("capability", SINCE_HOPPER)
def test_rows_are_gathered_16_bytes_at_a_time(compiled: Compile, capability: int) -> None:
    types = {
        "data": "*bf16",
        "ids": "*i32",
        "out": "*bf16",
        "first_row": "i32",
        "num_rows": "i32",
        "k": "i32",
    }
    code = compiled(gather.copy_rows, types, gather.OPTIONS, multiples=["k"], capability=capability)
    assert_holds(code, capability)
    assert (code.count_sass(r"LDG\.E\.128(\..*)?"), code.count_sass(r"STG\.E\.128")) == (1, 1)


@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize("name", some_fast(["Llama-3-8B", "SmolLM2-135M", "Gemma-2-9B"], "Llama-3-8B"))
@pytest.mark.parametrize("capability", SINCE_HOPPER)
def test_rotations_do_not_spill(compiled: Compile, name: str, has_norms: bool, capability: int) -> None:
    types = {"qkv": "*bf16", "q": "*bf16", "cache": "*bf16", "rotations": "*fp32"}
    types |= dict.fromkeys(("rotation_rows", "slots"), "*i32") | dict.fromkeys(("q_norm", "k_norm"), "*bf16")
    types |= dict.fromkeys(("num_tokens", "num_rotations", "num_slots", "stride"), "i32") | {"eps": "fp32"}
    options = rotary.rope_options(SHAPES[name][0]) | {"HAS_NORMS": has_norms}
    code = compiled(rotary.rotate_rows, types, options, multiples=["stride"], capability=capability)
    assert_holds(code, capability)
    assert code.count_sass(r"STG\.E\.128") > 0
