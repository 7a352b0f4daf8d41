"""The CUDA kernels on a GPU: several ranks share one, as streams of this process and as processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from support.rank_groups import Ranks, Workers, make_ranks
from support.rank_programs import norms_of
from support.symm_programs import inputs
from tokenweave.communicators import availability
from tokenweave.errors import KernelError
from tokenweave.kernels import ResidualNorms
from tokenweave.kernels.cuda.reference import TOLERANCE, reference_all_reduce_rms_norm
from tokenweave.kernels.cuda.sharing import ABORT, SAID, CtaTable, Said, shard, tag_of

reason = availability()["symm_mem"]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(reason is not None, reason=f"symm_mem: {reason}")]

if reason is None:
    from tokenweave.kernels.cuda import launch, multicast
    from tokenweave.kernels.cuda.one_device import OneDevice

EPS = 1e-5
SHAPES = [(1, 64), (3, 576), (17, 4096), (64, 5120), (130, 8192), (5, 61), (9, 12288), (7, 18432)]


def filled(
    ranks: OneDevice, num_tokens: int, hidden_size: int, dtype: str, seed: int, kind: str = "before"
) -> tuple[torch.Tensor, ...]:
    """Gives the ranks their parts; the normed rows and the residual to expect."""
    parts, residual, weight = inputs(ranks.size, num_tokens, hidden_size, dtype, seed)
    for rank in range(ranks.size):
        ranks.hidden[rank][:num_tokens] = parts[rank].cuda()
        ranks.residual[rank][:num_tokens] = residual.cuda()
    ranks.weight.copy_(weight)
    norms = norms_of(kind, weight, EPS)
    ranks.has_weight = norms.weight is not None
    ranks.post_weight = None if norms.post_weight is None else norms.post_weight.cuda()
    return reference_all_reduce_rms_norm(parts, residual, norms)


def check(ranks: OneDevice, expected: tuple[torch.Tensor, ...], is_shared: bool) -> None:
    normed, summed = expected
    num_tokens = normed.shape[0]
    tolerance = TOLERANCE[normed.dtype]
    torch.cuda.synchronize()
    for rank in range(ranks.size):
        assert ranks.meetings[rank].mailbox.tolist() == [0, 0]
        got = ranks.hidden[rank][:num_tokens].cpu()
        torch.testing.assert_close(got, normed, rtol=tolerance.rtol, atol=tolerance.atol)
        owned = shard(num_tokens, rank, ranks.size) if is_shared else range(num_tokens)
        rows = slice(owned.start, owned.stop)
        torch.testing.assert_close(ranks.residual[rank][rows].cpu(), summed[rows], rtol=1e-5, atol=1e-5)
        assert not ranks.pads[rank].any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_ranks_on_streams_give_the_reference_by_peer_pointers(size: int, dtype: str) -> None:
    for num_tokens, hidden_size in SHAPES:
        ranks = OneDevice(size, num_tokens, hidden_size, getattr(torch, dtype))
        for seed in range(3):
            expected = filled(ranks, num_tokens, hidden_size, dtype, seed)
            ranks.on_all_ranks(ranks.by_peers, num_tokens)
            check(ranks, expected, is_shared=True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_ranks_on_streams_give_the_reference_in_one_shot(size: int, dtype: str) -> None:
    for num_tokens, hidden_size in [(1, 64), (3, 576), (16, 4096), (30, 8192), (8, 18432)]:
        ranks = OneDevice(size, num_tokens, hidden_size, getattr(torch, dtype), rows_per_cta=2)
        for seed in range(4):
            expected = filled(ranks, num_tokens, hidden_size, dtype, seed)
            ranks.on_all_ranks(ranks.in_one_shot, num_tokens)
            check(ranks, expected, is_shared=False)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", ["after", "both", "neither"])
def test_ranks_on_streams_give_the_reference_with_other_norms(kind: str, dtype: str) -> None:
    for num_tokens, hidden_size in [(3, 576), (16, 4096), (5, 61), (9, 18432)]:
        ranks = OneDevice(2, num_tokens, hidden_size, getattr(torch, dtype))
        for kernel, is_shared in [(ranks.by_peers, True), (ranks.in_one_shot, False)]:
            expected = filled(ranks, num_tokens, hidden_size, dtype, 0, kind)
            ranks.on_all_ranks(kernel, num_tokens)
            check(ranks, expected, is_shared)


def test_a_graph_replays_both_paths_with_their_counters_and_epochs_in_step() -> None:
    ranks = OneDevice(2, 64, 4096, torch.bfloat16)
    for kernel, num_tokens in [(ranks.by_peers, 64), (ranks.in_one_shot, 16)]:
        ranks.on_all_ranks(kernel, num_tokens)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ranks.on_all_ranks(ranks.in_one_shot, 16)
    for seed in range(5):
        expected = filled(ranks, 16, 4096, "bfloat16", seed)
        graph.replay()
        check(ranks, expected, is_shared=False)
    shared = torch.cuda.CUDAGraph()
    with torch.cuda.graph(shared):
        ranks.on_all_ranks(ranks.by_peers, 64)
    for seed in range(5):
        expected = filled(ranks, 64, 4096, "bfloat16", seed)
        shared.replay()
        check(ranks, expected, is_shared=True)


@pytest.mark.parametrize("path", ["by_peers", "in_one_shot"])
def test_a_rank_that_does_not_come_is_named_and_nothing_waits_for_it_again(path: str) -> None:
    ranks = OneDevice(2, 16, 4096, torch.bfloat16, timeout_s=0.3)
    for _ in range(20):  # what is queued behind the first finds that it failed: none of it signals, or waits
        getattr(ranks, path)(0, 16)
    torch.cuda.synchronize()
    ctas = ranks.meetings[0].shared_ctas(16) if path == "by_peers" else 16
    assert Said.of(int(ranks.meetings[0].mailbox[SAID])) == (1, 0, tag_of(16, ctas))
    assert int(ranks.pads[1].max()) == tag_of(16, ctas)


@pytest.mark.parametrize(("path", "tokens"), [("by_peers", (16, 12)), ("in_one_shot", (16, 5))])
def test_ranks_with_different_numbers_of_tokens_notice_it_at_once(path: str, tokens: tuple[int, int]) -> None:
    ranks = OneDevice(2, 16, 4096, torch.bfloat16, timeout_s=60)
    ranks.on_all_ranks(lambda rank, _: getattr(ranks, path)(rank, tokens[rank]), 16)
    torch.cuda.synchronize()
    for rank, meeting in enumerate(ranks.meetings):
        said = Said.of(int(meeting.mailbox[SAID]))
        assert said is not None
        assert said.rank == 1 - rank
        assert (said.called >> 8, said.came >> 8) == (tokens[rank], tokens[1 - rank])


def test_calls_of_fewer_and_of_more_ctas_follow_each_other() -> None:
    ranks = OneDevice(2, 64, 4096, torch.bfloat16)
    for seed, num_ctas in enumerate([16, 2, 8, 1, 16, 4]):
        ranks.meetings = [replace(meeting, table=CtaTable.always(num_ctas)) for meeting in ranks.meetings]
        for kernel, num_tokens in [(ranks.by_peers, 64), (ranks.in_one_shot, 5)]:
            expected = filled(ranks, num_tokens, 4096, "bfloat16", seed)
            ranks.on_all_ranks(kernel, num_tokens)
            check(ranks, expected, is_shared=kernel == ranks.by_peers)


def test_the_host_can_end_a_wait() -> None:
    ranks = OneDevice(2, 16, 4096, torch.bfloat16, timeout_s=60)
    ranks.by_peers(0, 16)
    ranks.meetings[0].mailbox[ABORT] = 1
    torch.cuda.synchronize()
    assert Said.of(int(ranks.meetings[0].mailbox[SAID])) is not None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_switchs_path_gives_the_reference_on_a_multicast_object_of_one_device(dtype: str) -> None:
    num_tokens, hidden_size = 37, 4096
    try:
        local, address = multicast.allocate(num_tokens * hidden_size * 4)
    except KernelError as error:
        pytest.skip(f"no multicast object of one device: {error}")
    ranks = OneDevice(1, num_tokens, hidden_size, getattr(torch, dtype))
    for seed, kind in enumerate(["before", "after", "both", "neither"]):
        expected = filled(ranks, num_tokens, hidden_size, dtype, seed, kind)
        rows = local.view(getattr(torch, dtype))[: num_tokens * hidden_size].view(num_tokens, hidden_size)
        rows.copy_(ranks.hidden[0])
        launch.by_switch(ranks.meetings[0], address, rows, ranks.residual[0], ranks.norms(EPS))
        ranks.hidden[0].copy_(rows)
        check(ranks, expected, is_shared=True)


@pytest.fixture(scope="module", params=[1, 2])
def processes(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    workers = Workers()
    made = make_ranks("symm_gpu", request.param, workers, timeout_s=60)
    yield made
    made.close()
    workers.close()


def test_processes_that_share_a_gpu_give_the_reference_over_symmetric_memory(processes: Ranks) -> None:
    cases = [
        (64, 4096, "bfloat16", "plain"),
        (64, 4096, "bfloat16", "symmetric"),
        (7, 576, "float32", "plain"),
        (100, 5120, "float16", "rows"),
    ]
    for outcomes in processes.run("symm_programs.fused", cases):
        assert not isinstance(outcomes, Exception), outcomes
        for seed, (case, (normed, residual, owned)) in enumerate(zip(cases, outcomes, strict=True)):
            parts, before, weight = inputs(processes.size, *case[:3], seed)
            expected, summed = reference_all_reduce_rms_norm(parts, before, ResidualNorms(weight, EPS))
            tolerance = TOLERANCE[normed.dtype]
            torch.testing.assert_close(normed, expected, rtol=tolerance.rtol, atol=tolerance.atol)
            rows = slice(owned.start, owned.stop)
            torch.testing.assert_close(residual[rows], summed[rows], rtol=1e-5, atol=1e-5)
