"""Weights that are read as they are packed: the same bytes as of a weight that is in memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from support.kernel_cases import AVAILABLE_ISAS, native_kernels, randn
from support.stored_cases import random_weight
from tokenweave.errors import KernelError
from tokenweave.kernels import (
    FORMATS,
    Kernels,
    LazyStoredWeight,
    LazyWeight,
    PackedLinear,
    ReferenceKernels,
    StoredWeight,
    join,
)
from tokenweave.kernels import lazy as lazy_weights

K = 96


@pytest.fixture(params=["reference", *AVAILABLE_ISAS])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return ReferenceKernels() if request.param == "reference" else native_kernels(request.param)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[range]:
    """Makes pieces of 64 rows; the rows of each read."""
    monkeypatch.setattr(lazy_weights, "PIECE_VALUES", 64 * K)
    return []


def lazily(weight: Tensor, reads: list[range]) -> LazyWeight:
    def read(rows: range) -> Tensor:
        reads.append(rows)
        return weight[rows.start : rows.stop]

    return LazyWeight(*weight.shape, read)


def stored_lazily(weight: StoredWeight, reads: list[range]) -> LazyStoredWeight:
    def read(rows: range) -> StoredWeight:
        reads.append(rows)
        return weight.rows(rows)

    return LazyStoredWeight(weight.format, weight.n, weight.k, read, weight.first_column)


def assert_same(got: PackedLinear, expected: PackedLinear) -> None:
    assert (got.n, got.k, got.dtype, got.format) == (expected.n, expected.k, expected.dtype, expected.format)
    assert torch.equal(got.data.view(torch.uint8), expected.data.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored_as", [torch.float32, torch.bfloat16])
def test_a_weight_read_in_pieces_is_packed_as_a_whole_one(kernels, reads, dtype, stored_as):
    weight, bias = randn(1, 150, K).to(stored_as), randn(2, 150)
    got = kernels.pack(lazily(weight, reads), bias, dtype)
    assert_same(got, kernels.pack(weight, bias, dtype))
    assert reads == [range(64), range(64, 128), range(128, 150)]
    assert kernels.pack(LazyWeight(0, K, lambda rows: weight[:0]), dtype=dtype).n == 0


def test_weights_that_are_joined_are_packed_as_one(kernels, reads):
    parts = [randn(3, 40, K), randn(4, 70, K).bfloat16(), randn(5, 30, K)]
    got = kernels.pack(join([lazily(part, reads) for part in parts]), dtype=torch.float32)
    assert_same(got, kernels.pack(torch.cat([part.float() for part in parts])))
    assert max(len(rows) for rows in reads) <= 64


def test_stored_weights_read_in_pieces_are_packed_as_whole_ones(kernels, reads):
    parts = [
        random_weight(at, FORMATS[name], n, K, first_column=5)
        for at, (name, n) in enumerate([("q4_1", 40), ("q4_1", 70), ("q8_0", 100), ("q6_k", 9)])
    ]
    got = kernels.pack_stored([stored_lazily(part, reads) for part in parts])
    assert_same(got, kernels.pack_stored(parts))
    if kernels.name == "native":
        assert max(len(rows) for rows in reads) <= 64


def test_a_weight_in_memory_is_not_copied_first():
    weight = random_weight(1, FORMATS["q8_0"], 128, K)
    assert (
        lazy_weights.join_stored([weight]).rows(range(3, 9)).blocks.data_ptr() == weight.blocks[3].data_ptr()
    )


def test_rows_that_are_not_as_promised_are_refused(kernels):
    weight, q8, q4 = randn(1, 8, K), random_weight(1, FORMATS["q8_0"], 8, K), FORMATS["q4_0"]
    float32 = torch.float32
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: kernels.pack(LazyWeight(8, K, lambda rows: weight)), "dtype is None.*name it"),
        (
            lambda: kernels.pack(LazyWeight(9, K, lambda rows: weight), dtype=float32),
            r"\(8, 96\), expected \(9, 96\)",
        ),
        (
            lambda: kernels.pack(LazyWeight(8, K, lambda rows: weight.double()), dtype=float32),
            "torch.float64",
        ),
        (lambda: kernels.pack_stored(LazyStoredWeight(q8.format, 8, 64, q8.rows)), r"expected \(8, 64\)"),
        (
            lambda: kernels.pack_stored(LazyStoredWeight(q4, 8, K, q8.rows)),
            "q8_0 from value 0 .*expected q4_0",
        ),
    ]
    for call, message in cases:
        with pytest.raises(KernelError, match=message):
            call()
