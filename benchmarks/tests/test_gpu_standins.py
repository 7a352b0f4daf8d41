"""The stand-in kernels of `make gpu`, compiled for sm_90 without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from benchmarks.gpu.fused import COPY_BLOCK
from benchmarks.gpu.occupier import WARPS
from benchmarks.gpu.standins import copy_kernel, occupy_kernel
from support.cubins import Compiled, compile_kernel


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def occupier(tmp_path: Path) -> Compiled:
    types = {"stop": "*i32", "began_ns": "*i64", "was_told": "*i32", "timeout_ns": "i64"}
    return compile_kernel(occupy_kernel, types, {"num_warps": WARPS, "enable_fp_fusion": True}, tmp_path)


def test_a_cta_that_stays_looks_at_memory_that_others_write_and_at_the_clock(tmp_path: Path) -> None:
    code = occupier(tmp_path)
    assert code.count_ptx(r"ld\.volatile\.global") >= 2, "before the loop, and in it"
    assert code.count_ptx("globaltimer") >= 3
    assert code.local_bytes == code.shared_bytes == 0
    assert code.count_ptx(r"bar\.sync") == 0, "warps may leave the loop at different looks"


def test_the_copy_by_few_ctas_moves_16_bytes_at_a_time(tmp_path: Path) -> None:
    types = {"source": "*i32", "target": "*i32", "num_vectors": "i32"}
    options = {"BLOCK": COPY_BLOCK, "num_warps": 32, "enable_fp_fusion": True}
    code = compile_kernel(copy_kernel, types, options, tmp_path)
    each = COPY_BLOCK // (32 * 32 * 4)
    assert code.count_sass(r"LDG\.E\.128.*") == code.count_sass(r"STG\.E\.128.*") == each
    assert code.local_bytes == 0
