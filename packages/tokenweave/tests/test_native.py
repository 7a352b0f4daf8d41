"""The native library: how it is found, what it refuses, and its thread pool."""

from __future__ import annotations

import threading

import pytest
import torch

from support.kernel_cases import AVAILABLE_ISAS, randn
from tokenweave import native
from tokenweave.errors import NativeError
from tokenweave.kernels import NativeKernels, ReferenceKernels, make_kernels


@pytest.fixture
def fresh_library():
    native.load.cache_clear()
    yield
    native.load.cache_clear()


@pytest.mark.parametrize("isa", AVAILABLE_ISAS)
def test_the_environment_chooses_an_older_instruction_set(monkeypatch, isa):
    monkeypatch.setenv("TOKENWEAVE_ISA", isa)
    assert native.features()["isa"] == isa
    assert NativeKernels().isa == isa


def test_an_unknown_instruction_set_is_an_error_and_no_silent_fall_back(monkeypatch):
    monkeypatch.setenv("TOKENWEAVE_ISA", "mmx")
    reason = native.unavailable_reason()
    assert reason is not None
    assert "'mmx', expected one of baseline" in reason
    for name in ("native", "auto"):
        with pytest.raises(NativeError, match="mmx"):
            make_kernels(name)


def test_a_missing_library_is_reported_and_auto_falls_back(monkeypatch, tmp_path, fresh_library):
    monkeypatch.setattr(native, "library_path", lambda: tmp_path / "libtokenweave.so")
    reason = native.unavailable_reason()
    assert reason is not None
    assert "cannot load" in reason
    assert "reinstall" in reason
    assert isinstance(make_kernels("auto"), ReferenceKernels)


def test_another_abi_version_is_refused(monkeypatch, fresh_library):
    monkeypatch.setattr(native, "ABI_VERSION", native.ABI_VERSION + 1)
    reason = native.unavailable_reason()
    assert reason is not None
    assert f"ABI version {native.ABI_VERSION - 1}, expected {native.ABI_VERSION}" in reason


def test_a_library_without_a_newer_call_is_refused_by_the_name_of_the_call(monkeypatch, fresh_library):
    monkeypatch.setitem(native.SIGNATURES, "tw_not_built_yet", (None, []))
    reason = native.unavailable_reason()
    assert reason is not None
    assert "has no tw_not_built_yet" in reason
    assert "make native" in reason


def test_a_closed_pool_raises_instead_of_crashing():
    kernels = NativeKernels(2)
    packed = kernels.pack(randn(1, 32, 32))
    kernels.close()
    kernels.close()
    with pytest.raises(NativeError, match="closed"):
        kernels.linear(randn(1, 2, 32), packed)


@pytest.mark.parametrize("threads", [0, -1, 5000])
def test_impossible_thread_counts_are_refused(threads):
    with pytest.raises(Exception, match="tw_pool_create"):
        native.ThreadPool(threads)


def test_pools_of_different_threads_work_side_by_side():
    x, weight = randn(1, 50, 256, dtype=torch.bfloat16), randn(2, 640, 256, dtype=torch.bfloat16)
    alone = NativeKernels(1)
    expected = alone.linear(x, alone.pack(weight))
    mismatches: list[int] = []

    def work(rank: int) -> None:
        kernels = NativeKernels(3)
        packed = kernels.pack(weight)
        mismatches.extend(rank for _ in range(100) if not torch.equal(kernels.linear(x, packed), expected))

    ranks = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert not mismatches


@pytest.mark.parametrize("limit", native.LIMITS)
def test_measured_limits_are_positive(limit):
    assert native.measure_limit(limit, threads=2, seconds=0.0) > 0
    with pytest.raises(NativeError, match="expected one of"):
        native.measure_limit("teraflops")
