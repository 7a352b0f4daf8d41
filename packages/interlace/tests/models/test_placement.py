"""The integers of a batch go to a device together."""

from __future__ import annotations

import torch

from interlace.models.batch import ForwardBatch
from interlace.models.placement import Indices, StaticIndices, in_one_copy, moved, place

CPU, META = torch.device("cpu"), torch.device("meta")


def ints(*shape: int) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return torch.arange(count, dtype=torch.int32).view(shape) + 100 * len(shape)


def test_tensors_go_over_in_one_copy_each_on_a_line_of_16_bytes() -> None:
    tensors = [ints(3), ints(0), ints(2, 5), ints(4, 3)[:, :2], ints(9)[1:6], ints(0, 4)]
    there = in_one_copy(tensors, CPU)
    assert [each.shape for each in there] == [each.shape for each in tensors]
    assert all(torch.equal(*pair) for pair in zip(there, tensors, strict=True))
    assert all(each.dtype is torch.int32 and each.is_contiguous() for each in there)
    assert len({each.untyped_storage().data_ptr() for each in there}) == 1
    assert all(each.storage_offset() * each.itemsize % 16 == 0 for each in there)


def test_the_copy_does_not_change_with_the_batch() -> None:
    tensor = ints(5)
    (there,) = in_one_copy([tensor], CPU)
    tensor.zero_()
    assert torch.equal(there, ints(5))


def test_indices_keep_their_places() -> None:
    batch = ForwardBatch.prefill(21, 331)
    groups = [Indices.of(batch, [batch.positions]), Indices.of(batch, [batch.slots, batch.positions])]
    assert place(groups, CPU) is groups
    for group, there in zip(groups, place(groups, META), strict=True):
        assert [each.shape for each in there.tensors] == [each.shape for each in group.tensors]
        assert {each.device for each in there.tensors} == {META}
        assert len(there.rotation_rows) == len(group.rotation_rows)
    copied = groups[1].replaced(iter(in_one_copy(groups[1].tensors, CPU)))
    assert all(torch.equal(*pair) for pair in zip(copied.tensors, groups[1].tensors, strict=True))
    assert torch.equal(copied.rotation_rows[1], batch.positions)


def test_batches_alike_come_to_one_place_one_after_the_other() -> None:
    batches = [ForwardBatch.prefill(21, size) for size in (331, 7)]
    groups = [[Indices.of(batch, [batch.positions]), Indices.of(batch, [])] for batch in batches]
    memory = StaticIndices(groups[0], CPU)
    places = [tensor.data_ptr() for group in memory.groups for tensor in group.tensors]
    for given in (groups[1], groups[0]):
        memory.fill(given)
        for group, wanted in zip(memory.groups, given, strict=True):
            assert all(torch.equal(*pair) for pair in zip(group.tensors, wanted.tensors, strict=True))
    assert [tensor.data_ptr() for group in memory.groups for tensor in group.tensors] == places
    assert (
        len({tensor.untyped_storage().data_ptr() for group in memory.groups for tensor in group.tensors}) == 1
    )


def test_a_tensor_is_moved() -> None:
    assert moved(torch.ones(3), META).device == META
