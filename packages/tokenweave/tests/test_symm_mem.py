"""The CUDA kernels' protocol on a CPU: Triton's interpreter, a process for each rank, shared memory, real barriers."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata

import pytest
import torch

from support.rank_groups import TIMEOUT_S, Ranks, Workers, make_ranks
from support.rank_programs import norms_of
from support.symm_programs import Case, inputs
from tokenweave.communicators import SymmMemCommunicator, availability
from tokenweave.communicators.activation_ring import BuffersTaken
from tokenweave.communicators.symmetric_memory import SymmetricBuffer, SymmetricMemory
from tokenweave.errors import CommunicatorError
from tokenweave.kernels import ResidualNorms
from tokenweave.kernels.cuda import multicast
from tokenweave.kernels.cuda.reference import TOLERANCE, reference_all_reduce_rms_norm
from tokenweave.kernels.cuda.sharing import MAX_CTAS, MAX_TOKENS, CtaTable, Said, describe, shard, tag_of

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
    (5, 9000, "bfloat16", "plain"),  # a row of several chunks
    (2, 9000, "float32", "plain"),
]
NUM_CTAS = 2  # of `support.interpreted_ranks`


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
        assert counters == [0] * (2 * NUM_CTAS * ranks.size)


@pytest.mark.parametrize("kind", ["after", "both", "neither"])
def test_norms_may_stand_after_the_sublayer_and_be_missing_before_the_next(ranks: Ranks, kind: str) -> None:
    cases: list[Case] = [
        (7, 72, "float32", "symmetric"),
        (3, 61, "bfloat16", "plain"),
        (5, 576, "float16", "plain"),
        (4, 9000, "float32", "plain"),
        (1, 9000, "float32", "plain"),
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
    widths = [64] * 5 + [192, 64, 64, 192, 64]  # rows of another size have slots of their own
    # One CTA: the interpreter runs them in turn.
    cases: list[Case] = [(1, width, "float32", "plain") for width in widths]
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
        assert len(messages) == 7
        assert all(message.startswith("CommunicatorError: got ") for message in messages)
        assert "hidden of torch.int32 (5, 8)" in messages[0]
        assert "expected torch.float32 (5, 8) on cpu, contiguous" in messages[2]
        for message, name in zip(messages[5:], ("residual", "weight"), strict=True):
            assert (
                f"got {name} that begins 4 bytes after a multiple of 16; expected it at a multiple" in message
            )
    assert ranks.run("symm_programs.fused_once", 5) == [None] * ranks.size


def test_one_rank_of_one_device_gives_the_reference(ranks: Ranks) -> None:
    """The ranks of the GPU tests and of the benchmark, as far as they can be had here."""
    (parts, before, weight), shape = inputs(1, 4, 72, "bfloat16", 0), (4, 72, "bfloat16")
    expected, summed = reference_all_reduce_rms_norm(parts, before, ResidualNorms(weight, 1e-5))
    tolerance = TOLERANCE[torch.bfloat16]
    for normed, residual, counters in ranks.run("symm_programs.one_device", *shape, ranks=[0])[0]:
        torch.testing.assert_close(normed, expected, rtol=tolerance.rtol, atol=tolerance.atol)
        torch.testing.assert_close(residual, summed)
        assert counters == [0] * (2 * NUM_CTAS)


def test_calls_may_take_fewer_ctas_than_the_ones_before(ranks: Ranks) -> None:
    """A CTA that sits out some calls meets its namesakes again: their epochs stood still alike."""
    cases: list[Case] = [(9, 64, "float32", "plain"), (2, 64, "float32", "plain")] * 3
    ctas = [2, 2, 1, 1, 2, 1]
    for outcomes in ranks.run("symm_programs.fused", cases, "before", ctas):
        assert not isinstance(outcomes, Exception), outcomes
        for seed, (case, (normed, _, _)) in enumerate(zip(cases, outcomes, strict=True)):
            parts, before, weight = inputs(ranks.size, *case[:3], seed)
            expected, _ = reference_all_reduce_rms_norm(parts, before, ResidualNorms(weight, 1e-5))
            torch.testing.assert_close(normed, expected)
    for counters in ranks.run("symm_programs.pads"):
        assert counters == [0] * (2 * NUM_CTAS * ranks.size)
    for message in ranks.run("symm_programs.refused_ctas", 3):
        assert message == "got 3 CTAs; this communicator was made with counters for 2"
    for message in ranks.run("symm_programs.refused_ctas", 0):
        assert "expected pairs (num_tokens, num_ctas)" in message
    ranks.run("symm_programs.refused_ctas", NUM_CTAS)


def test_a_rank_may_keep_its_own_rows_of_the_residual_alone(ranks: Ranks) -> None:
    cases: list[Case] = [
        (7, 64, "float32", "plain"),
        (9, 72, "bfloat16", "symmetric"),
        (3, 64, "float32", "plain"),
    ]
    for outcomes in ranks.run("symm_programs.fused_by_shards", cases):
        assert not isinstance(outcomes, Exception), outcomes
        for seed, (case, (normed, own, owned)) in enumerate(zip(cases, outcomes, strict=True)):
            parts, before, weight = inputs(ranks.size, *case[:3], seed)
            expected, summed = reference_all_reduce_rms_norm(parts, before, ResidualNorms(weight, 1e-5))
            tolerance = TOLERANCE[normed.dtype]
            torch.testing.assert_close(normed, expected, rtol=tolerance.rtol, atol=tolerance.atol)
            torch.testing.assert_close(own, summed[owned.start : owned.stop])


def test_each_pass_has_its_partial_sums_in_the_same_six_buffers(ranks: Ranks) -> None:
    for first, *others in ranks.run("symm_programs.partials_of_passes", [8, 3, 7, 6]):
        places, phase = first
        assert len(set(places)) == 6
        assert places[6:] == places[:2]
        for other, begins in others:
            assert other == (places * 2)[: len(other)]
            assert begins == phase


def test_a_pass_goes_on_behind_what_was_replayed_of_it(ranks: Ranks) -> None:
    assert ranks.run("symm_programs.partials_after_a_replay", 5) == [True] * ranks.size


def test_a_reduction_takes_partial_sums_where_they_are_and_leaves_the_rows_there(ranks: Ranks) -> None:
    for is_staged, early, late, new_bytes in ranks.run("symm_programs.woven_on_partials", 9):
        assert not is_staged
        assert new_bytes == 0
        for soon, later in zip(early, late, strict=True):
            assert torch.equal(soon, later)


def test_a_partial_sum_that_the_ring_has_no_room_for_is_a_tensor_of_the_device(ranks: Ranks) -> None:
    found = (torch.device("cpu"), 10, BuffersTaken())
    assert ranks.run("symm_programs.partial_that_does_not_fit") == [found] * ranks.size


def test_a_table_of_ctas_is_read_by_the_next_larger_number_of_tokens() -> None:
    table = CtaTable(((64, 4), (1024, 8), (4096, 16)))
    assert [table.of(tokens) for tokens in (1, 64, 65, 1024, 4096, 100_000)] == [4, 4, 8, 8, 16, 16]
    assert table.most == 16
    assert {CtaTable.always(3).of(tokens) for tokens in (1, 10_000)} == {3}


@pytest.mark.parametrize("rows", [(), ((8, 0),), ((8, 256),), ((8, 2), (4, 4)), ((8, 2), (8, 4))])
def test_a_table_of_ctas_that_says_nothing_or_too_much_is_refused(rows: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(CommunicatorError, match="got a table of CTAs"):
        CtaTable(rows)


def test_a_mailbox_has_room_for_the_largest_rank_and_both_tags() -> None:
    largest = tag_of(MAX_TOKENS, MAX_CTAS)
    word = 72 | largest << 7 | largest - 1 << 35
    assert word < 2**63
    assert Said.of(word) == (71, largest, largest - 1)
    assert Said.of(0) is None
    assert describe(tag_of(5, 2)) == "all_reduce_rms_norm of 5 tokens in 2 CTAs"


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
    availability()  # a module that were imported first below would keep the name that is set there
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert availability()["symm_mem"] == "triton is not installed: pip install triton"


@pytest.mark.parametrize(
    ("version", "is_enough"),
    [
        ("3.2.0", False),
        ("3.4.0+git1234", False),
        ("3.5.0", True),
        ("3.10.1", True),
        ("4.0.0", True),
        ("x", False),
    ],
)
def test_an_old_triton_is_named_with_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, version: str, is_enough: bool
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    reason = availability()["symm_mem"]
    is_refused = reason is not None and reason.startswith(f"triton is {version}, and 3.5 or newer is needed")
    assert is_refused is not is_enough


def test_tritons_nightly_builds_have_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "triton":
            raise metadata.PackageNotFoundError(name)
        return {"pytorch-triton": "3.4.1"}[name]

    monkeypatch.setattr("importlib.metadata.version", version)
    assert str(availability()["symm_mem"]).startswith("triton is 3.4.1, and")


def test_a_torch_for_rocm_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert availability()["symm_mem"] == "this torch is built for ROCm 6.4; the kernels are for NVIDIA's GPUs"


class SecondDevice(SymmetricMemory):
    device = torch.device("cuda", 1)

    def allocate(self, size_bytes: int) -> SymmetricBuffer:
        raise AssertionError


@pytest.mark.parametrize(("current", "entered"), [(0, [torch.device("cuda", 1)]), (1, [])])
def test_on_a_new_thread_a_call_makes_its_device_current(
    monkeypatch: pytest.MonkeyPatch, current: int, entered: list[torch.device]
) -> None:
    found: list[torch.device] = []

    def device(wanted: torch.device) -> AbstractContextManager[None]:
        found.append(wanted)
        return nullcontext()

    monkeypatch.setattr("torch.cuda.current_device", lambda: current)
    monkeypatch.setattr("torch.cuda.device", device)
    communicator = object.__new__(SymmMemCommunicator)
    communicator._memory = SecondDevice()
    with communicator._on_device():
        pass
    assert found == entered


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
