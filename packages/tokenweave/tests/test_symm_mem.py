"""The CUDA kernels' protocol on a CPU: Triton's interpreter, a process for each rank, shared memory, real barriers."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from support.rank_groups import TIMEOUT_S, Ranks, Workers, make_ranks
from support.rank_programs import norms_of
from support.symm_programs import Case, inputs
from tokenweave.communicators import SymmMemCommunicator, availability
from tokenweave.errors import CommunicatorError
from tokenweave.kernels import ResidualNorms
from tokenweave.kernels.cuda import multicast
from tokenweave.kernels.cuda.reference import TOLERANCE, reference_all_reduce_rms_norm
from tokenweave.kernels.cuda.sharing import shard

pytest.importorskip("triton", reason="triton is not installed")

CASES: list[Case] = [  # up to three rows go in one shot
    (5, 64, "float32", "plain"),
    (5, 64, "float32", "symmetric"),
    (3, 64, "float32", "plain"),  # one shot, and one shot again: the slots' other half
    (2, 64, "bfloat16", "symmetric"),
    (1, 64, "float16", "strided"),
    (9, 72, "bfloat16", "rows"),
    (4, 61, "float16", "strided"),  # rows that are not of whole vectors
    (3, 576, "bfloat16", "plain"),
    (7, 576, "bfloat16", "symmetric"),
    (0, 64, "float32", "plain"),
    (4, 1, "float32", "plain"),
]


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest, workers: Workers) -> Iterator[Ranks]:
    made = make_ranks("symm_mem", request.param, workers, timeout_s=TIMEOUT_S)
    yield made
    made.close()


def test_every_round_gives_the_reference_and_leaves_the_counters_at_zero(ranks: Ranks) -> None:
    for outcomes in ranks.run("symm_programs.fused", CASES):
        assert not isinstance(outcomes, Exception), outcomes
        for seed, (case, (normed, residual, owned)) in enumerate(zip(CASES, outcomes, strict=True)):
            parts, before, weight = inputs(ranks.size, *case[:3], seed)
            expected, summed = reference_all_reduce_rms_norm(parts, before, ResidualNorms(weight, 1e-5))
            tolerance = TOLERANCE[normed.dtype]
            torch.testing.assert_close(normed, expected, rtol=tolerance.rtol, atol=tolerance.atol)
            rows = slice(owned.start, owned.stop)
            torch.testing.assert_close(residual[rows], summed[rows])
    for counters in ranks.run("symm_programs.pads"):
        assert counters == [0] * (2 * ranks.size)


@pytest.mark.parametrize("kind", ["after", "both", "neither"])
def test_norms_may_stand_after_the_sublayer_and_be_missing_before_the_next(ranks: Ranks, kind: str) -> None:
    cases: list[Case] = [
        (7, 72, "float32", "symmetric"),
        (3, 61, "bfloat16", "plain"),
        (5, 576, "float16", "plain"),
    ]
    for outcomes in ranks.run("symm_programs.fused", cases, kind):
        assert not isinstance(outcomes, Exception), outcomes
        for seed, (case, (normed, residual, owned)) in enumerate(zip(cases, outcomes, strict=True)):
            parts, before, weight = inputs(ranks.size, *case[:3], seed)
            expected, summed = reference_all_reduce_rms_norm(parts, before, norms_of(kind, weight, 1e-5))
            tolerance = TOLERANCE[normed.dtype]
            torch.testing.assert_close(normed, expected, rtol=tolerance.rtol, atol=tolerance.atol)
            rows = slice(owned.start, owned.stop)
            torch.testing.assert_close(residual[rows], summed[rows])


@pytest.mark.parametrize("slow_rank", [0, 1])
def test_a_rank_that_reads_late_still_reads_what_it_was_sent(ranks: Ranks, slow_rank: int) -> None:
    """The fast ranks send the next call's rows meanwhile, into the other half of its slots."""
    cases: list[Case] = [(1, 64, "float32", "plain")] * 5  # one CTA: the interpreter runs them in turn
    for outcomes in ranks.run("symm_programs.fused_by_a_slow_reader", slow_rank, cases):
        assert not isinstance(outcomes, Exception), outcomes
        for seed, (case, (normed, _, _)) in enumerate(zip(cases, outcomes, strict=True)):
            parts, before, weight = inputs(ranks.size, *case[:3], seed)
            expected, _ = reference_all_reduce_rms_norm(parts, before, ResidualNorms(weight, 1e-5))
            torch.testing.assert_close(normed, expected)


def test_every_rank_has_the_same_bits(ranks: Ranks) -> None:
    first, *others = ranks.run("symm_programs.fused", CASES[:4])
    for other in others:
        for (normed, _, _), (wanted, _, _) in zip(other, first, strict=True):
            assert torch.equal(normed, wanted)


def test_each_row_of_the_residual_is_owned_by_one_rank_above_the_one_shot_limit(ranks: Ranks) -> None:
    outcomes = ranks.run("symm_programs.fused", [(7, 64, "float32", "plain"), (2, 64, "float32", "plain")])
    assert [row for (_, _, owned), _ in outcomes for row in owned] == list(range(7))
    assert all(owned == range(2) for _, (_, _, owned) in outcomes)


def test_bad_arguments_are_refused_and_harm_nothing(ranks: Ranks) -> None:
    for messages in ranks.run("symm_programs.refused"):
        assert len(messages) == 5
        assert all(message.startswith("CommunicatorError: got ") for message in messages)
        assert "hidden of torch.int32 (5, 8)" in messages[0]
        assert "expected torch.float32 (5, 8) on cpu, contiguous" in messages[2]
    assert ranks.run("symm_programs.fused_once", 5) == [None] * ranks.size


def test_one_rank_of_one_device_gives_the_reference(ranks: Ranks) -> None:
    """The ranks of the GPU tests and of the benchmark, as far as they can be had here."""
    (parts, before, weight), shape = inputs(1, 4, 72, "bfloat16", 0), (4, 72, "bfloat16")
    expected, summed = reference_all_reduce_rms_norm(parts, before, ResidualNorms(weight, 1e-5))
    tolerance = TOLERANCE[torch.bfloat16]
    for normed, residual, counters in ranks.run("symm_programs.one_device", *shape, ranks=[0])[0]:
        torch.testing.assert_close(normed, expected, rtol=tolerance.rtol, atol=tolerance.atol)
        torch.testing.assert_close(residual, summed)
        assert counters == [0, 0]


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("num_tokens", [0, 1, 7, 8, 4097])
def test_shards_are_neighbours_of_one_length_or_one_more(num_tokens: int, size: int) -> None:
    shards = [shard(num_tokens, rank, size) for rank in range(size)]
    assert [row for rows in shards for row in rows] == list(range(num_tokens))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_the_communicator_can_be_imported_without_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None; from tokenweave.communicators import SymmMemCommunicator"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_triton_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert availability()["symm_mem"] == "triton is not installed: pip install triton"


def test_the_drivers_structures_have_the_sizes_that_cuda_h_gives_them() -> None:
    allocation, access = multicast._AllocationProperties, multicast._AccessDescription
    sizes = [ctypes.sizeof(kind) for kind in (allocation, access, multicast._MulticastProperties)]
    assert sizes == [32, 12, 32]


def test_without_a_device_it_says_why_it_cannot_be_had() -> None:
    reason = availability()["symm_mem"]
    if reason is None:
        pytest.skip("it can be had here")
    made = object.__new__(SymmMemCommunicator)
    with pytest.raises(CommunicatorError, match=r"symm_mem cannot be had here: .*; use torch or shm"):
        made._default_memory()


def test_preparing_runs_each_combination_of_norms_once_in_each_form(ranks: Ranks) -> None:
    """Three examples of which two have the same weights; one shot, and by owners."""
    for called in ranks.run("symm_programs.prepared_for", 64, 9):
        assert called == [
            (rows, names) for rows in (3, 9) for names in (("weight",), ("weight", "post_weight"))
        ]
