"""Stored weights: their values are those of the gguf package, bit for bit, and sizes that do not fit are refused."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from support.kernel_cases import ints, randn
from support.stored_cases import ALL_FORMATS, random_blocks, random_weight
from tokenweave.errors import KernelError
from tokenweave.kernels import FORMATS, ReferenceKernels, StoredWeight, dequantise

REFERENCE = ReferenceKernels()
by_format = pytest.mark.parametrize("form", ALL_FORMATS, ids=lambda form: form.name)


def values_of_gguf(form, blocks):
    kind = gguf.GGMLQuantizationType[form.name.upper()]
    return torch.from_numpy(np.ascontiguousarray(gguf.quants.dequantize(blocks.numpy(), kind)))


@by_format
def test_sizes_of_a_block_are_those_of_gguf(form):
    kind = gguf.GGMLQuantizationType[form.name.upper()]
    assert gguf.GGML_QUANT_SIZES[kind] == (form.block_values, form.block_bytes)


@by_format
def test_dequantised_values_are_those_of_gguf(form):
    blocks = random_blocks(1, form, 20, 3)
    stored = StoredWeight.whole(form, 3 * form.block_values, blocks)
    assert torch.equal(dequantise(stored), values_of_gguf(form, blocks))


@by_format
def test_bytes_of_zero_are_values_of_zero(form):
    stored = StoredWeight.whole(form, 256, torch.zeros(2, form.row_bytes(256), dtype=torch.uint8))
    assert not dequantise(stored).any()


@by_format
def test_rows_and_columns_are_cut_anywhere(form):
    whole = random_weight(2, form, 9, 3 * form.block_values)
    values = dequantise(whole)
    for columns in (range(16), range(28, 92), range(form.block_values - 1, form.block_values + 1)):
        part = whole.rows(range(2, 7)).columns(columns)
        assert torch.equal(dequantise(part), values[2:7, columns.start : columns.stop])
        again = part.columns(range(1, part.k))
        assert torch.equal(dequantise(again), values[2:7, columns.start + 1 : columns.stop])


@by_format
def test_the_reference_multiplies_the_dequantised_values(form):
    first, second = random_weight(3, form, 40, 256), random_weight(4, FORMATS["q8_0"], 8, 256)
    x, bias = randn(5, 3, 256), randn(6, 48)
    packed = REFERENCE.pack_stored([first, second], bias)
    values = torch.cat([dequantise(first), dequantise(second)])
    assert packed.format == ("q8_0" if form.name == "q8_0" else f"{form.name}+q8_0")
    assert torch.equal(REFERENCE.linear(x, packed), torch.nn.functional.linear(x, values, bias))
    assert torch.equal(REFERENCE.gather_rows(packed, ints(47, 0)), values[[47, 0]])


def test_sizes_that_do_not_fit_are_refused():
    q4, q4k = FORMATS["q4_1"], FORMATS["q4_k"]
    blocks = random_blocks(1, q4, 4, 2)
    weight = StoredWeight.whole(q4, 64, blocks)
    cases = [
        (lambda: StoredWeight.whole(q4k, 576, blocks), "576 values, expected a multiple of 256.*dequantise"),
        (lambda: StoredWeight(q4, 4, 65, blocks), r"\(4, 40\).*expected torch.uint8 \(4, 60\)"),
        (lambda: StoredWeight(q4, 4, 32, blocks), r"\(4, 40\).*expected torch.uint8 \(4, 20\)"),
        (lambda: StoredWeight(q4, 5, 64, blocks), r"expected torch.uint8 \(5, 40\)"),
        (lambda: StoredWeight(q4, 4, 64, blocks.int()), "blocks are torch.int32"),
        (lambda: StoredWeight(q4, 4, 32, blocks, 32), r"first_column is 32, expected 0..31"),
        (lambda: StoredWeight(q4, 4, 0, blocks), "k >= 1"),
        (lambda: StoredWeight(q4, 40, 32, blocks.T[:20].T.contiguous().T.reshape(20, 4).T), "expected"),
        (lambda: weight.columns(range(3, 65)), "columns 3..65 of a weight of 64 columns"),
        (lambda: REFERENCE.pack_stored([]), "no columns"),
        (lambda: REFERENCE.pack_stored([weight, weight.columns(range(32))]), r"\[32, 64\] columns"),
        (lambda: REFERENCE.pack_stored(weight, randn(1, 5)), r"bias is .*expected torch.float32 \(4,\)"),
        (lambda: REFERENCE.pack_stored(weight, dtype=torch.float64), "dtype is torch.float64"),
    ]
    for call, message in cases:
        with pytest.raises(KernelError, match=message):
            call()
