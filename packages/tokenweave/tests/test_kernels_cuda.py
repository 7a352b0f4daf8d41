"""The CUDA kernels, compiled for sm_90 without a GPU: the instructions that come out, and what they need."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

import triton

from support.cubins import BLACKWELL, HOPPER, Compiled, can_avoid, compile_kernel
from tokenweave.kernels.cuda import launch
from tokenweave.kernels.cuda.multimem import multimem_kernel
from tokenweave.kernels.cuda.one_shot import one_shot_kernel
from tokenweave.kernels.cuda.peer import peer_kernel

REGISTERS_PER_CTA = 65536  # of a Hopper SM: what a CTA can have if it is alone
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

Case = tuple[int, torch.dtype, int]  # hidden_size, dtype, ranks
CASES: list[Case] = [
    (4096, torch.bfloat16, 8),
    (5120, torch.float16, 4),
    (8192, torch.float32, 8),
    (576, torch.bfloat16, 2),
]
WIDE = [12288, 16384, 18432]  # rows of several chunks
Compile = Callable[..., Compiled]  # of a path, a case, and whether there are weights before and after


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """The kernel of a path for a case, compiled once; nothing is left in the user's cache."""
    directory = tmp_path_factory.mktemp("triton")
    made: dict[tuple[str, Case, bool, bool], Compiled] = {}

    def get(path: str, case: Case, has_weight: bool = True, has_post: bool = False) -> Compiled:
        key = (path, case, has_weight, has_post)
        if key not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("TRITON_CACHE_DIR", str(directory))
                made[key] = compile_path(*key, directory)
        return made[key]

    return get


def compile_path(
    path: str, case: Case, has_weight: bool, has_post: bool, directory: Path, capability: int = HOPPER
) -> Compiled:
    hidden_size, dtype, size = case
    element = f"*{NAMES[dtype]}"
    meeting = {"pads": "*i64", "epochs": "*i32", "failed": "*i32", "mailbox": "*i64"}
    weights = {"weight": element, "post_weight": element}
    ends = {"rank": "i32", "tag": "i32", "eps": "fp32", "timeout_ns": "i64"}
    shared = {
        "residual": "*fp32",
        "kept_shift": "i32",
        **weights,
        "first_row": "i32",
        "last_row": "i32",
        **ends,
    }
    kernel: Any
    if path == "peer":
        kernel, options = peer_kernel, launch.peer_options(hidden_size, dtype, size)
        types = {"buffers": "*i64", "offset_bytes": "i64", **meeting, **shared}
    elif path == "multimem":
        kernel, options = multimem_kernel, launch.multimem_options(hidden_size, dtype, size)
        types = {"multicast": "i64", **meeting, **shared}
    else:
        kernel, options = one_shot_kernel, launch.one_shot_options(hidden_size, dtype, size, 16, 1)
        types = {"slots": "*i64", **meeting, "hidden": element, "residual": "*fp32", **weights}
        types |= {"num_tokens": "i32", **ends}
    options = {**options, "HAS_WEIGHT": has_weight, "HAS_POST": has_post}
    return compile_kernel(kernel, types, options, directory, capability)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["peer", "multimem", "one_shot"])
def test_every_path_compiles_for_blackwell(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    code = compile_path(path, CASES[0], True, False, tmp_path, BLACKWELL)
    assert code.stack_bytes == code.local_bytes == 0
    assert code.count_sass(r"(LDL|STL)(\..*)?") == 0


def vectors_per_thread(case: Case, code: Compiled, bytes_per_element: int | None = None) -> int:
    """Accesses of 16 bytes that a thread needs for its part of a row."""
    width = bytes_per_element or case[1].itemsize
    return triton.next_power_of_2(case[0]) * width // (16 * code.threads)


@pytest.mark.parametrize("path", ["multimem", "peer", "one_shot"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_path_spills_and_a_cta_fits_an_sm(compiled: Compile, path: str, case: Case) -> None:
    code = compiled(path, case)
    assert code.stack_bytes == code.local_bytes == 0
    assert code.count_sass(r"(LDL|STL)(\..*)?") == 0
    assert code.registers * code.threads <= REGISTERS_PER_CTA
    assert code.shared_bytes <= 2048  # what a sum over the warps takes; rows stay in registers


# Where the assembler stops at 128 registers, though a CTA of 256 threads may have twice as many.
WIDE_STACK_BYTES = {
    ("peer", 16384, torch.bfloat16, False): 24,
    ("one_shot", 18432, torch.float32, False): 8,
}


@pytest.mark.parametrize("path", ["multimem", "peer", "one_shot"])
def test_a_wide_row_stays_in_registers_with_both_norms(compiled: Compile, path: str) -> None:
    """The norms that take most of them: the sum waits for its own. Wider rows are compiled below, for longer."""
    code = compiled(path, (WIDE[0], torch.bfloat16, 8), True, True)
    assert code.stack_bytes == code.local_bytes == 0
    assert code.registers * code.threads <= REGISTERS_PER_CTA
    assert code.shared_bytes <= 2048


@pytest.mark.slow
@pytest.mark.parametrize("path", ["multimem", "peer", "one_shot"])
@pytest.mark.parametrize(
    ("dtype", "has_post"),
    [
        (torch.float32, False),
        (torch.float32, True),
        (torch.bfloat16, False),
        (torch.bfloat16, True),
        (torch.float16, True),  # as wide as bfloat16
    ],
)
@pytest.mark.parametrize("hidden_size", WIDE)
def test_a_wide_row_of_any_dtype_stays_in_registers(
    compiled: Compile, path: str, hidden_size: int, dtype: torch.dtype, has_post: bool
) -> None:
    code = compiled(path, (hidden_size, dtype, 8), True, has_post)
    most = WIDE_STACK_BYTES.get((path, hidden_size, dtype, has_post), 0)
    assert code.local_bytes == 0
    assert code.stack_bytes <= most
    assert code.registers * code.threads <= REGISTERS_PER_CTA
    assert code.shared_bytes <= 2048


@pytest.mark.parametrize("path", ["multimem", "peer", "one_shot"])
@pytest.mark.parametrize(("has_weight", "has_post"), [(True, True), (False, True), (False, False)])
def test_kernels_of_other_norms_compile_and_hold_a_row_in_registers(
    compiled: Compile, path: str, has_weight: bool, has_post: bool
) -> None:
    case: Case = (4096, torch.bfloat16, 8)
    code = compiled(path, case, has_weight, has_post)
    assert code.stack_bytes == code.local_bytes == 0
    assert code.registers * code.threads <= REGISTERS_PER_CTA
    roots = code.count_ptx(r"rsqrt\.approx")
    assert (roots > 0) == (has_weight or has_post)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_switchs_path_needs_few_registers(compiled: Compile, case: Case) -> None:
    """Two CTAs fit an SM beside each other up to 512 threads."""
    assert compiled("multimem", case).registers <= 64


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_switch_adds_in_float32_and_stores_on_every_rank(compiled: Compile, case: Case) -> None:
    code = compiled("multimem", case)
    dtype = case[1]
    kind = {torch.bfloat16: "bf16x2", torch.float16: "f16x2", torch.float32: "f32"}[dtype]
    wide = "" if dtype is torch.float32 else r"\.acc::f32"
    per_row = 2 if dtype is torch.float32 else 1  # eight elements a thread: 16 bytes, or 32
    loads = code.count_ptx(rf"multimem\.ld_reduce\.relaxed\.sys\.global\.add{wide}\.v4\.{kind} ")
    assert loads == 2 * per_row  # of the first row, and of the next one while this one is worked on
    assert code.count_ptx(rf"multimem\.st\.relaxed\.sys\.global\.v4\.{kind} ") == per_row
    machine = {
        torch.bfloat16: r"LDGMC\.E\.F32ADD\.BF16x8\.RN\.STRONG\.SYS",
        torch.float16: r"LDGMC\.E\.F32ADD\.F16x8\.RN\.STRONG\.SYS",
        torch.float32: r"LDGMC\.E\.ADD\.F32x4\.RN\.STRONG\.SYS",
    }[dtype]
    assert code.count_sass(machine) == code.count_sass(r"LDGMC\..*") == loads
    assert code.count_sass(r"STG\.E\.128\.STRONG\.SYS") == per_row


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_next_row_is_asked_for_before_this_one_is_stored(compiled: Compile, case: Case) -> None:
    """In the loop, the load of the next sum comes before the reduction's barrier and the store."""
    body = compiled("multimem", case).sass
    last_load = body.rindex("LDGMC")
    store = body.index("STG.E.128.STRONG.SYS")
    assert last_load < store
    assert "BAR.SYNC" in body[last_load:store] or compiled("multimem", case).threads == 32


@pytest.mark.parametrize("case", CASES, ids=str)
def test_peers_rows_come_in_128_bits_around_the_l1_cache(compiled: Compile, case: Case) -> None:
    code = compiled("peer", case)
    hidden_size, dtype, size = case
    prefetches = launch.peer_options(hidden_size, dtype, size)["PREFETCHES"]
    rows_in_flight = 2 if prefetches else 1
    loads = rows_in_flight * size * vectors_per_thread(case, code)
    assert code.count_ptx(r"ld\.volatile\.global\.v4\.b32 ") == loads
    assert code.count_sass(r"LDG\.E\.128\.STRONG\.SYS") == loads
    stores = size * vectors_per_thread(case, code) + vectors_per_thread(case, code, 4)  # normed, residual
    assert code.count_ptx(r"st\.global\.v4\.b32 ") == stores
    assert stores <= code.count_sass(r"STG\.E\.128") <= 2 * stores  # ptxas may repeat one in another branch


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_shot_stores_on_every_rank_and_reads_its_own_memory(compiled: Compile, case: Case) -> None:
    code = compiled("one_shot", case)
    size = case[2]
    assert code.count_sass(r"LDG\.E\.128\.STRONG\.SYS") == size * vectors_per_thread(case, code)
    sent_and_normed = (size + 1) * vectors_per_thread(case, code)
    assert code.count_ptx(r"st\.global\.v4\.b32 ") == sent_and_normed + vectors_per_thread(case, code, 4)


@pytest.mark.parametrize(
    ("path", "relaxed", "ordered"), [("multimem", 1, 1), ("peer", 1, 1), ("one_shot", 0, 1)]
)
def test_barriers_are_relaxed_on_the_way_in_and_ordered_on_the_way_out(
    compiled: Compile, path: str, relaxed: int, ordered: int
) -> None:
    """Signals of system scope; with order, a release before the signal and an acquire after the wait."""
    code = compiled(path, CASES[0])
    assert code.count_ptx(r"(?:atom|red)\.global\.sys\.release\.add\.") == ordered
    assert code.count_ptx(r"atom\.global\.sys\.acquire\.add\.") == ordered
    # A relaxed barrier signals and takes its signals; either barrier polls.
    assert code.count_ptx(r"(?:atom|red)\.global\.sys\.relaxed\.add\.") == 2 * relaxed + (relaxed + ordered)
    assert code.count_sass(r"MEMBAR\.\w+\.SYS") == ordered
    assert code.count_sass(r"CCTL\.IVALL") == ordered  # the acquire empties the L1 cache
    assert code.count_sass(r"(ATOMG|REDG)\.E\.ADD\.STRONG\.SYS") == 3 * (relaxed + ordered)


@pytest.mark.parametrize(("path", "barriers"), [("multimem", 2), ("peer", 2), ("one_shot", 1)])
def test_ranks_that_meet_well_read_no_host_memory(compiled: Compile, path: str, barriers: int) -> None:
    """A mailbox has words of 64 bits, and nothing else is loaded so around the caches.

    It is looked at once in a loop of polls, and there behind a branch: the end of the last barrier, where the acquire
    empties the L1 cache, can be reached without.
    """
    code = compiled(path, CASES[0])
    looks = r"LDG\.E\.64\.STRONG\.SYS"
    assert code.count_sass(looks) == barriers
    says = r"STG\.E\.64"
    assert code.count_sass(says) == barriers
    assert code.can_avoid(rf"{looks}|{says}", goal=r"CCTL\.IVALL")


STRAIGHT = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDG.E R2, desc[UR4][R4.64] ;
        /*0020*/              @!P0 BRA `(.L_x_1) ;
        /*0030*/               @P1 EXIT ;
        /*0040*/                   CCTL.IVALL ;
        /*0050*/                   EXIT ;
"""
BEHIND_A_BRANCH = """
        /*0000*/               @P2 BRA `(.L_x_2) ;
        /*0010*/                   LDG.E R2, desc[UR4][R4.64] ;
.L_x_2:
        /*0020*/                   BRA.U UP0, `(.L_x_4) ;
        /*0030*/                   BRA `(.L_x_3) ;
        /*0040*/                   CCTL.IVALL ;
.L_x_3:
        /*0050*/                   EXIT ;
.L_x_4:
        /*0060*/                   CCTL.IVALL ;
        /*0070*/                   EXIT ;
"""


def test_what_lies_on_every_way_is_told_from_what_lies_behind_a_branch() -> None:
    assert not can_avoid(STRAIGHT, r"LDG\.E", r"CCTL\.IVALL")
    assert can_avoid(STRAIGHT, r"STG\.E", r"CCTL\.IVALL")
    assert can_avoid(BEHIND_A_BRANCH, r"LDG\.E", r"CCTL\.IVALL")
    without_the_branch = BEHIND_A_BRANCH.replace("BRA.U UP0, `(.L_x_4)", "NOP")
    assert not can_avoid(without_the_branch, r"LDG\.E", r"CCTL\.IVALL")


@pytest.mark.parametrize("path", ["multimem", "peer", "one_shot"])
def test_every_thread_of_a_cta_is_told_what_a_poll_found(compiled: Compile, path: str) -> None:
    """Triton 3.4 told the first warp alone: a barrier that hangs. So a poll's result goes through shared memory."""
    code = compiled(path, CASES[0])
    loop = code.sass[code.sass.index("ATOMG.E.ADD.STRONG.SYS") :]
    reduced = re.search(r"REDUX|SHFL", loop)
    assert reduced is not None
    assert loop.index("STS") < loop.index("BAR.SYNC") < loop.index("LDS") < reduced.start()


@pytest.mark.parametrize("path", ["multimem", "peer", "one_shot"])
def test_the_bound_of_a_wait_is_the_devices_clock(compiled: Compile, path: str) -> None:
    code = compiled(path, CASES[0])
    assert code.count_ptx(r"mov\.u64 %rd\d+, %globaltimer") >= 2
    assert re.search(r"GLOBALTIMER", code.sass)


def test_a_row_that_is_not_of_whole_vectors_compiles_with_narrower_accesses(compiled: Compile) -> None:
    code = compiled("peer", (61, torch.float16, 3))
    assert code.stack_bytes == 0
    assert code.count_sass(r"LDG\.E\.128\.STRONG\.SYS") == 0
    assert code.count_sass(r"LDG\.E\.U16\.STRONG\.SYS") > 0


def test_a_thread_never_shares_a_vector_of_the_switchs_path() -> None:
    """Replicas would each read a sum, and add the residual twice."""
    for hidden_size in (8, 64, 576, 4096, 5120, 8192, *WIDE):
        options = launch.multimem_options(hidden_size, torch.bfloat16, 8)
        assert options["VECTORS"] >= 32 * options["num_warps"]
        assert options["VECTORS"] * options["CHUNKS"] * 8 >= hidden_size
