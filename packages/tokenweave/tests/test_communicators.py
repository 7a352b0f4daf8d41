"""The communicator contract, on every backend: what every collective gives."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.rank_groups import TIMEOUT_S, Ranks, Workers, make_ranks
from support.rank_programs import DTYPES, data_of, expected_sum
from tokenweave.communicators import (
    Communicator,
    NullCommunicator,
    availability,
    thread_group,
)
from tokenweave.errors import CommunicatorError
from tokenweave.kernels import ResidualNorms
from tokenweave.kernels.norms import reference_reduce_rms_norm

GROUPS = [
    ("null", 1),
    *[("thread", size) for size in (1, 2, 3)],
    *[("shm-threads", size) for size in (1, 2, 3)],
    *[("shm-processes", size) for size in (2, 3)],
    *[("shm-symmetric-threads", size) for size in (1, 2, 3)],
    *[("shm-symmetric-processes", size) for size in (2, 3)],
    *[("torch", size) for size in (1, 2, 3)],
    ("linked-null", 1),
    *[("linked-thread", size) for size in (1, 2, 3)],
    *[("linked-shm-processes", size) for size in (2, 3)],
    ("linked-shm-symmetric-processes", 2),
    ("linked-torch", 2),
    *[("symm_mem", size) for size in (1, 2)],  # its kernels run in Triton's interpreter
]
SHAPES = [
    (7,),
    (3, 5),
    (0,),
    (0, 4),
    (),
    (2, 4096),
    (331, 577),
]  # the last in several chunks, unevenly shared
# Triton's interpreter takes milliseconds a row. There, a call of more than three is shared out already, and these are
# shared out unevenly, several to each CTA.
ROWS_INTERPRETED = {301: 21, 1024: 75}


@pytest.fixture(scope="module", params=GROUPS, ids=lambda group: f"{group[0]}-{group[1]}")
def ranks(request: pytest.FixtureRequest, workers: Workers) -> Iterator[Ranks]:
    kind, size = request.param
    made = make_ranks(kind, size, workers, timeout_s=TIMEOUT_S)
    yield made
    made.close()


def rows(ranks: Ranks, num_tokens: int) -> int:
    """As many rows as the test asks for, or fewer that take the same ways through an interpreted kernel."""
    return ROWS_INTERPRETED.get(num_tokens, num_tokens) if ranks.is_interpreted else num_tokens


def assert_equal_bits(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert bits(got) == bits(expected)


def assert_all_equal_bits(got: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert not isinstance(got, Exception), got
    for one, wanted in zip(got, expected, strict=True):
        assert_equal_bits(one, wanted)


def bits(tensor: torch.Tensor) -> bytes:
    return (
        tensor.flatten().contiguous().clone().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_reduce_is_the_float32_sum_in_rank_order(ranks: Ranks, dtype: str) -> None:
    expected = [expected_sum(ranks.size, shape, dtype) for shape in SHAPES]
    for got in ranks.run("sequence", [("all_reduce", shape, dtype) for shape in SHAPES]):
        assert_all_equal_bits(got, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sum_does_not_depend_on_what_else_is_in_the_tensor(ranks: Ranks, dtype: str) -> None:
    shape = (331, 577)
    whole = ranks.run("all_reduce", shape, dtype)[0]
    for first, last in [(0, 1), (17, 19), (100, 330)]:
        for got in ranks.run("all_reduce_slice", shape, dtype, first, last):
            assert_equal_bits(got, whole[first:last])


def test_sums_of_infinities_and_nans_stay_so(ranks: Ranks) -> None:
    for got in ranks.run("all_reduce_specials"):
        assert got[0].isposinf()
        assert got[1].isneginf()
        assert got[2].isnan()


def test_all_reduce_takes_a_tensor_that_is_not_contiguous(ranks: Ranks) -> None:
    expected = expected_sum(ranks.size, (9, 11), "float32")
    for rank, (view, whole) in enumerate(ranks.run("all_reduce_transposed", (9, 11))):
        assert_equal_bits(view, expected.t()[1:])
        assert_equal_bits(whole[:, 0], data_of(rank, (9, 11), "float32")[:, 0])  # outside the view


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_gather_stacks_in_rank_order(ranks: Ranks, dtype: str) -> None:
    shapes = [(1,), (3, 5), (0, 4), (4, 0), (60000,)]
    expected = [torch.cat([data_of(rank, shape, dtype) for rank in range(ranks.size)]) for shape in shapes]
    for got in ranks.run("sequence", [("all_gather", shape, dtype) for shape in shapes]):
        assert_all_equal_bits(got, expected)


def test_all_gather_takes_a_tensor_that_is_not_contiguous(ranks: Ranks) -> None:
    parts = [data_of(rank, (6, 8), "float32")[::2, 1::3] for rank in range(ranks.size)]
    for got in ranks.run("all_gather_strided"):
        assert_equal_bits(got, torch.cat(parts))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8"])
@pytest.mark.parametrize("widths", [[4, 4, 4], [3, 0, 7], [0, 0, 0], [70_000, 1, 90_000]])
def test_gather_columns_lays_the_ranks_side_by_side_on_the_root(
    ranks: Ranks, dtype: str, widths: list[int]
) -> None:
    for rows in (0, 1, 5):
        parts = [data_of(rank, (rows, widths[rank]), dtype) for rank in range(ranks.size)]
        for root in range(ranks.size):
            outcomes = ranks.run("gather_columns", rows, widths, dtype, root)
            assert_equal_bits(outcomes[root], torch.cat(parts, dim=1))
            assert all(got is None for rank, got in enumerate(outcomes) if rank != root)


def test_gather_columns_refuses_widths_that_do_not_fit(ranks: Ranks) -> None:
    for outcome in ranks.run("gather_columns", 2, [3] * (ranks.size - 1), "float32", 0):
        assert isinstance(outcome, IndexError | CommunicatorError)


@pytest.mark.parametrize("dtype", DTYPES)
def test_broadcast_gives_the_roots_tensor(ranks: Ranks, dtype: str) -> None:
    calls = [(shape, dtype, root) for shape in [(), (3, 5), (0,), (60000,)] for root in range(ranks.size)]
    expected = [data_of(root, shape, dtype) for shape, dtype, root in calls]
    for got in ranks.run("sequence", [("broadcast", *call) for call in calls]):
        assert_all_equal_bits(got, expected)


def test_broadcast_fills_a_tensor_that_is_not_contiguous(ranks: Ranks) -> None:
    root = ranks.size - 1
    for rank, got in enumerate(ranks.run("broadcast_strided", root)):
        assert_equal_bits(got[:, ::2], data_of(root, (6, 8), "float32")[:, ::2])
        assert_equal_bits(got[:, 1::2], data_of(rank, (6, 8), "float32")[:, 1::2])


@pytest.mark.parametrize("idle", [False, True])
@pytest.mark.parametrize("num_bytes", [0, 1, 4088, 4089, 16384, 3_000_000])
def test_broadcast_bytes_gives_the_roots_bytes(ranks: Ranks, num_bytes: int, idle: bool) -> None:
    data = bytes(index % 251 for index in range(num_bytes))
    for root in range(ranks.size):
        assert ranks.run("broadcast_bytes", data, root, idle) == [data] * ranks.size


def test_an_idle_wait_sleeps(ranks: Ranks) -> None:
    """One that spun would take all of the processor that it can get: most of the wait, unless others are at work."""
    for rank, outcome in enumerate(ranks.run("broadcast_from_a_late_root", 0.2)):
        assert isinstance(outcome, tuple), outcome
        data, waited_s, busy_s = outcome
        assert data == b"late"
        assert rank == 0 or busy_s < waited_s / 2


def test_no_rank_leaves_a_barrier_before_every_rank_came(ranks: Ranks) -> None:
    times = ranks.run("barrier_times")
    assert min(left for _, left in times) >= max(came for came, _ in times)


def test_many_small_sums_one_after_the_other_are_all_right(ranks: Ranks) -> None:
    assert ranks.run("fixed_sum_many_times", 200) == [True] * ranks.size


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("num_tokens", [0, 1, 5, 301])
def test_all_reduce_rms_norm_is_sum_then_add_then_norm(ranks: Ranks, num_tokens: int, dtype: str) -> None:
    num_tokens = rows(ranks, num_tokens)
    total = sum(data_of(rank, (num_tokens, 64), dtype).float() for rank in range(ranks.size))
    before, weight = data_of(100, (num_tokens, 64), "float32"), data_of(200, (64,), dtype)
    # Two roundings are allowed: fused, the sum is never rounded; summed first, it is rounded to the dtype.
    allowed = []
    for sum_of_parts in (total, total.to(DTYPES[dtype]).float()):
        residual = before + sum_of_parts
        scale = torch.rsqrt(residual.pow(2).mean(-1, keepdim=True) + 1e-5)
        allowed.append(((residual * scale * weight).to(DTYPES[dtype]), residual))
    rounding = {} if dtype == "float32" else {"rtol": 2 * torch.finfo(DTYPES[dtype]).eps, "atol": 1e-3}
    for got_normed, got_residual, owned in ranks.run("all_reduce_rms_norm", num_tokens, dtype):
        assert got_normed.dtype is DTYPES[dtype]
        normed, residual = min(
            allowed,
            key=lambda pair: (
                (got_residual - pair[1])[owned].abs().sum().item(),
                (got_normed - pair[0]).abs().sum().item(),
            ),
        )
        torch.testing.assert_close(got_normed, normed, **rounding)
        torch.testing.assert_close(got_residual[owned], residual[owned])


@pytest.mark.parametrize("kind", ["after", "both", "neither"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_all_reduce_rms_norm_takes_norms_after_the_sublayer_and_may_lack_the_one_before_the_next(
    ranks: Ranks, dtype: str, kind: str
) -> None:
    """Gemma 2 has both, OLMo 2 the first alone. By hand, of few rows and of rows that are shared out."""
    for num_tokens in (0, 5, rows(ranks, 301)):
        total = sum(data_of(rank, (num_tokens, 64), dtype).double() for rank in range(ranks.size))
        weight = data_of(200, (64,), dtype).double()
        added = normed_by_hand(total, weight.flip(0)) if kind in ("after", "both") else total
        residual = data_of(100, (num_tokens, 64), "float32").double() + added
        normed = normed_by_hand(residual, weight) if kind == "both" else residual
        tolerance = 1e-5 if dtype == "float32" else 2e-2  # a backend may round the sum
        for got_normed, got_residual, owned in ranks.run("all_reduce_rms_norm", num_tokens, dtype, kind):
            assert got_normed.dtype is DTYPES[dtype]
            assert_rows_close(got_normed.double(), normed, tolerance)
            own = slice(owned.start, owned.stop)
            assert_rows_close(got_residual[own].double(), residual[own], tolerance)


def assert_rows_close(got: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    assert bool(((got - wanted).norm(dim=-1) <= tolerance * wanted.norm(dim=-1)).all())


def normed_by_hand(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return rows / (rows.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight


@pytest.mark.parametrize("num_tokens", [1, 301, 1024])
@pytest.mark.parametrize("share", [0, 0.02, 1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_selected_rows_of_the_residual_are_every_ranks(
    ranks: Ranks, num_tokens: int, share: float, dtype: str
) -> None:
    """So that a reduction of those rows alone is right on every rank."""
    num_tokens = rows(ranks, num_tokens)
    generator = torch.Generator().manual_seed(num_tokens)
    chosen = (
        torch.randperm(num_tokens, generator=generator)[: round(share * num_tokens)].sort().values.tolist()
    )
    shape, weight = (num_tokens, 64), data_of(200, (64,), dtype)
    parts, more = ([data_of(rank, shape, dtype, seed) for rank in range(ranks.size)] for seed in (0, 1))
    residual = data_of(100, shape, "float32")
    reference_reduce_rms_norm(parts, residual, ResidualNorms(weight, 1e-5))
    expected = residual[chosen].clone()
    normed = reference_reduce_rms_norm(
        [part[chosen] for part in more], residual[chosen], ResidualNorms(weight, 1e-5)
    )
    outcomes = ranks.run("selected_residual", num_tokens, chosen, dtype)
    tolerance = 1e-5 if dtype == "float32" else 2e-2  # a backend that sums apart from adding rounds the sum
    for outcome in outcomes:
        assert not isinstance(outcome, Exception), outcome
        for got, wanted, own in zip(outcome, (expected, normed), outcomes[0], strict=True):
            assert_rows_close(got, wanted, tolerance)
            assert_equal_bits(got, own)


@pytest.mark.parametrize(("num_tokens", "dtype"), [(0, "float32"), (2, "bfloat16"), (301, "float32")])
def test_a_residual_of_the_communicators_own_has_the_rows_of_any_other(
    ranks: Ranks, num_tokens: int, dtype: str
) -> None:
    """All of them, or those that the rank owns."""
    shape, chosen = (num_tokens, 64), list(range(0, num_tokens, 7))
    residual, weight = torch.zeros(shape), data_of(200, (64,), dtype)
    for seed in (0, 1):
        parts = [data_of(rank, shape, dtype, seed) for rank in range(ranks.size)]
        wanted = reference_reduce_rms_norm(parts, residual, ResidualNorms(weight, 1e-5))
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    outcomes = ranks.run("residual_of_its_own", num_tokens, chosen, dtype)
    for outcome in outcomes:
        assert not isinstance(outcome, Exception), outcome
        normed, owned, rows, selected = outcome
        assert_rows_close(normed, wanted, tolerance)
        assert_rows_close(rows, residual[owned.start : owned.stop], tolerance)
        assert_rows_close(selected, residual[chosen], tolerance)
        assert_equal_bits(selected, outcomes[0][3])
    assert {row for _, owned, _, _ in outcomes for row in owned} == set(range(num_tokens))


Operation = tuple[object, ...]


def operations(size: int) -> st.SearchStrategy[list[Operation]]:
    shapes = st.sampled_from([(), (1,), (3, 7), (0,), (5000,), (20000,)])
    dtypes = st.sampled_from(sorted(DTYPES))
    roots = st.integers(0, size - 1)
    return st.lists(
        st.one_of(
            st.tuples(st.just("all_reduce"), shapes, dtypes, st.integers(0, 5)),
            st.tuples(st.just("all_gather"), shapes.filter(bool), dtypes),
            st.tuples(
                st.just("gather_columns"),
                st.integers(0, 4),
                st.lists(st.integers(0, 200), min_size=size, max_size=size),
                dtypes,
                roots,
            ),
            st.tuples(st.just("broadcast"), shapes, dtypes, roots),
            st.tuples(st.just("broadcast_bytes"), st.binary(max_size=6000), roots, st.booleans()),
            st.tuples(st.just("barrier")),
        ),
        max_size=12,
    )


def expected_outcome(size: int, name: str, *arguments: object) -> object:
    if name == "all_reduce":
        return expected_sum(size, *arguments)  # type: ignore[arg-type]
    if name == "all_gather":
        return torch.cat([data_of(rank, *arguments) for rank in range(size)])  # type: ignore[arg-type]
    if name == "broadcast":
        shape, dtype, root = arguments
        return data_of(root, shape, dtype)  # type: ignore[arg-type]
    if name == "gather_columns":
        rows, widths, dtype, _ = arguments
        parts = [data_of(rank, (rows, widths[rank]), dtype) for rank in range(size)]  # type: ignore[arg-type,index]
        return torch.cat(parts, dim=1)
    return arguments[0] if name == "broadcast_bytes" else None


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_sequence_of_collectives_keeps_the_ranks_in_step(ranks: Ranks, data: st.DataObject) -> None:
    chosen = data.draw(operations(ranks.size))
    expected = [expected_outcome(ranks.size, *operation) for operation in chosen]  # type: ignore[arg-type]
    for rank, outcomes in enumerate(ranks.run("sequence", chosen)):
        assert not isinstance(outcomes, Exception), outcomes
        for operation, got, wanted in zip(chosen, outcomes, expected, strict=True):
            if operation[0] == "gather_columns" and operation[-1] != rank:
                assert got is None
            elif isinstance(wanted, torch.Tensor):
                assert_equal_bits(got, wanted)
            else:
                assert got == wanted


def test_arguments_that_cannot_be_are_refused_and_harm_nothing(ranks: Ranks) -> None:
    for outcome in ranks.run("refused_calls"):
        assert outcome == [
            "got a tensor of torch.float64; expected one of bfloat16, float16, float32, int32, int64, uint8: "
            "convert it first",
            f"got root={ranks.size}; expected a rank, 0 to {ranks.size - 1}",
            "all_gather got a tensor of no dimensions; expected (n, ...): use tensor.view(1)",
        ]
    for outcome in ranks.run("bytes_on_the_wrong_rank"):
        assert isinstance(outcome, CommunicatorError)
        assert "expected bytes on the root, rank 0, and None on the others" in str(outcome)
    assert ranks.run("fixed_sum_many_times", 1) == [True] * ranks.size


def test_ranks_say_who_they_are(ranks: Ranks) -> None:
    for rank, text in enumerate(ranks.run("describe")):
        assert text.endswith(f"Communicator rank {rank} of {ranks.size}>")


@pytest.mark.parametrize(("rank", "size"), [(0, 0), (2, 2), (-1, 2)])
def test_a_rank_outside_its_group_is_refused(rank: int, size: int) -> None:
    class Bare(NullCommunicator):
        def __init__(self) -> None:
            Communicator.__init__(self, rank, size)

    with pytest.raises(CommunicatorError, match="expected 0 <= rank < size"):
        Bare()


def test_a_group_of_none_and_a_timeout_of_zero_are_refused() -> None:
    with pytest.raises(CommunicatorError, match="got a group of 0"):
        thread_group(0)
    with pytest.raises(CommunicatorError, match="timeout_s=0"):
        NullCommunicator(timeout_s=0)


def test_every_backend_is_available_here() -> None:
    found = availability()
    of_gpus = {name: found.pop(name) for name in ("nccl", "symm_mem")}
    assert found == {"null": None, "thread": None, "shm": None, "torch": None}
    if not torch.cuda.is_available():
        for reason in of_gpus.values():
            assert reason is not None
            assert "there is no CUDA device (this torch is built for" in reason


def test_a_launcher_can_size_a_segment_without_torch() -> None:
    code = (
        "import sys; from tokenweave.communicators import segment_bytes; import emucxl.shared_memory as memory;"
        "memory.SharedSegment.create('x', segment_bytes(2)).close(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
