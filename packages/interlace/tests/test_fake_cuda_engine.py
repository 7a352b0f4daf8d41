"""The engine on CUDA without a GPU: its kernels under Triton's interpreter, its tensors on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from support.fake_cuda import num_passed

PROPERTIES = str(Path(__file__).parent / "interpreted" / "engine_on_fake_cuda.py")
STAGES = str(Path(__file__).parent / "interpreted" / "stages_on_fake_cuda.py")


def test_it_has_the_tokens_of_the_engine_on_the_cpu() -> None:
    assert num_passed("-m", "not slow", PROPERTIES) >= 5


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_so_it_has_for_every_family_and_two_ranks() -> None:
    assert num_passed("-m", "slow", PROPERTIES) >= 41


@pytest.mark.slow
def test_stages_that_a_table_is_measured_with_are_calls_that_the_kernels_take() -> None:
    assert num_passed(STAGES) == 4
