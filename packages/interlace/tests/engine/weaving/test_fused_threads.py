"""Ranks as threads whose fused operation is a kernel: the memory that they share, with a kernel played on the CPU."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import tokenweave.kernels.cuda
from interlace.engine.weaving.fused_threads import FusedThreadCommunicator, fused_thread_group
from support.rank_groups import ThreadRanks
from tokenweave.communicators.symm_mem import ONE_SHOT_TOKENS
from tokenweave.errors import CommunicatorError, CommunicatorTimeout
from tokenweave.kernels import ResidualNorms
from tokenweave.kernels.cuda.sharing import SAID, Meeting, shard
from tokenweave.kernels.norms import reference_add_rms_norm

SIZE, MAX_TOKENS, HIDDEN, NUM_CTAS = 2, 40, 24, 8


class PlayedKernels:
    """The kernels' arithmetic by torch, on the addresses that the kernels are given. Ranks meet at a barrier."""

    def __init__(self) -> None:
        self.met = threading.Barrier(SIZE)
        self.ctas: list[int] = []

    def by_peers(
        self,
        meeting: Meeting,
        buffers: Tensor,
        offset: int,
        hidden: Tensor,
        residual: Tensor,
        norms: ResidualNorms,
    ) -> None:
        rows = shard(len(hidden), meeting.rank, meeting.size)
        ranks = [at(address + offset, hidden) for address in buffers.tolist()]
        self.ctas.append(meeting.shared_ctas(len(hidden)))
        self.met.wait(10)
        total = torch.stack([rank[rows.start : rows.stop] for rank in ranks]).sum(0)
        assert len(residual) == len(rows)
        normed = reference_add_rms_norm(total, residual, norms)
        self.met.wait(10)
        for rank in ranks:
            rank[rows.start : rows.stop] = normed
        self.met.wait(10)

    def in_one_shot(
        self,
        meeting: Meeting,
        slots: Tensor,
        per_cta: int,
        hidden: Tensor,
        residual: Tensor,
        norms: ResidualNorms,
    ) -> None:
        assert per_cta * meeting.num_ctas >= ONE_SHOT_TOKENS
        for address in slots.tolist():
            at(address + meeting.rank * hidden.nbytes, hidden).copy_(hidden)
        self.met.wait(10)
        own = slots.tolist()[meeting.rank]
        total = torch.stack([at(own + rank * hidden.nbytes, hidden) for rank in range(SIZE)]).sum(0)
        hidden.copy_(reference_add_rms_norm(total, residual, norms))
        self.met.wait(10)


def at(address: int, like: Tensor) -> Tensor:
    """The tensor of the shape and dtype of `like` at an address of this process."""
    memory = (ctypes.c_char * like.nbytes).from_address(address)
    return torch.frombuffer(memory, dtype=like.dtype).view(like.shape)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> PlayedKernels:
    played = PlayedKernels()
    launch = SimpleNamespace(by_peers=played.by_peers, in_one_shot=played.in_one_shot)
    monkeypatch.setattr(tokenweave.kernels.cuda, "launch", launch, raising=False)
    return played


@pytest.fixture
def ranks(kernels: PlayedKernels) -> Iterator[ThreadRanks]:
    group = ThreadRanks(list(fused_thread_group(SIZE, timeout_s=10)))
    for outcome in group.run("fused_thread_programs.opened", NUM_CTAS, MAX_TOKENS, HIDDEN):
        assert outcome is None, outcome
    yield group
    group.close()


@pytest.mark.parametrize("num_tokens", [1, ONE_SHOT_TOKENS, ONE_SHOT_TOKENS + 1, MAX_TOKENS])
def test_all_ranks_have_the_normed_sum_and_the_residual_of_their_rows(
    ranks: ThreadRanks, num_tokens: int
) -> None:
    for normed, residual, expected, summed, owned in ranks.run(
        "fused_thread_programs.reduced", num_tokens, HIDDEN
    ):
        torch.testing.assert_close(normed, expected)
        torch.testing.assert_close(residual, summed[owned.start : owned.stop])


def test_rows_of_the_residual_and_columns_are_exchanged(ranks: ThreadRanks) -> None:
    outcomes = ranks.run("fused_thread_programs.exchanged", MAX_TOKENS, HIDDEN)
    for rank, (selected, summed, columns) in enumerate(outcomes):
        torch.testing.assert_close(selected, summed)
        assert (columns is None) == (rank > 0)
    assert outcomes[0][2].tolist() == [[0.0, 0.0, 1.0, 1.0, 1.0]] * 3


def test_calls_take_the_ctas_that_they_are_told(ranks: ThreadRanks, kernels: PlayedKernels) -> None:
    for num_ctas in (2, 8):
        for communicator in ranks.communicators:
            assert isinstance(communicator, FusedThreadCommunicator)
            communicator.use_ctas(num_ctas)
        ranks.run("fused_thread_programs.reduced", MAX_TOKENS, HIDDEN)
    assert kernels.ctas == [2, 2, 8, 8]
    with pytest.raises(CommunicatorError, match="counters for 8"):
        ranks.communicators[0].use_ctas(9)  # type: ignore[attr-defined]


def test_what_does_not_lie_in_shared_memory_is_refused(ranks: ThreadRanks) -> None:
    communicator = ranks.communicators[0]
    with pytest.raises(CommunicatorError, match="expected one that was reserved"):
        communicator.new_partial(MAX_TOKENS + 1, HIDDEN, torch.float32)
    rows, residual = torch.zeros(20, HIDDEN), torch.zeros(10, HIDDEN)
    with pytest.raises(CommunicatorError, match="expected a tensor of new_partial"):
        communicator.all_reduce_rms_norm(rows, residual, ResidualNorms(torch.ones(HIDDEN), 1e-5))


def test_a_rank_that_did_not_come_is_named(ranks: ThreadRanks) -> None:
    communicator = ranks.communicators[0]
    assert isinstance(communicator, FusedThreadCommunicator)
    communicator._letters[SAID] = 1 + 1  # what the kernel writes: one plus the rank
    partial = communicator.new_partial(4, HIDDEN, torch.float32)
    with pytest.raises(CommunicatorTimeout, match="for rank 1"):
        communicator.all_reduce_rms_norm(
            partial, torch.zeros(4, HIDDEN), ResidualNorms(torch.ones(HIDDEN), 1e-5)
        )
