"""Passes in graphs, on graphs that do the work again: the logits of the CPU, and nothing that a graph cannot hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from interlace.engine.ranks.graph_replayer import GraphReplayer
from interlace.models.batch import ForwardBatch
from support.device_ranks import NUM_BLOCKS, AsOnADevice, Passes, Rank
from support.driver import Driver
from support.fake_graphs import FakeGraph, FakeGraphs
from support.operations import Operations
from support.tiny_models import FAMILIES, VOCAB_SIZE, make_model
from tokenweave.communicators import ThreadCommunicator
from tokenweave.errors import GraphError
from tokenweave.execute import Handler, Observer, run_sequential
from tokenweave.graphs import Graph
from tokenweave.kernels import Kernels, ReferenceKernels
from tokenweave.ops import Operation
from tokenweave.plan import Plan

META = torch.device("meta")
MAX_ROWS, MAX_BLOCKS = 4, 16
LENGTHS = (3, 20, 40)
TOLERANCE = 5e-4  # of float32 logits, whose attention sums in another order


class GraphRank:
    """A rank that runs in graphs what it can; what `Driver` drives."""

    num_blocks = NUM_BLOCKS

    def __init__(self, rank: Rank) -> None:
        device = rank.decoder.kernels.device
        self.rank, self.graphs = rank, FakeGraphs(device)
        self.plans: list[Plan] = []  # whose steps were issued
        self.replayer = GraphReplayer(rank.decoder, rank.cache, self.graphs, self._run, MAX_ROWS, MAX_BLOCKS)

    def _run(self, plan: Plan, handlers: dict[Operation, Handler], observe: Observer | None) -> None:
        self.plans.append(plan)
        run_sequential(plan, handlers, observe)

    @torch.inference_mode()
    def execute(self, batch: ForwardBatch) -> Tensor:
        logits = self.replayer.execute(batch)
        return self.rank.execute(batch) if logits is None else logits.clone()


class GraphPasses(Passes):
    """All ranks of a model, in graphs."""

    def __init__(self, directory: Path, *kernels: Kernels) -> None:
        super().__init__(directory, *kernels)
        self.graph_ranks = [GraphRank(rank) for rank in self.ranks]
        self.ranks = self.graph_ranks  # type: ignore[assignment]

    @property
    def first(self) -> GraphRank:
        return self.graph_ranks[0]


def prompts(more: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, VOCAB_SIZE, (n + more,), generator=generator).tolist() for n in LENGTHS]


def decode(passes: Passes, chosen: Sequence[Sequence[int]], split: bool = False) -> list[Tensor]:
    """The logits of prefill, and of one decoding pass over each of `chosen` sequences, which are cut if they can be."""
    driver = Driver(passes, prompts(len(chosen)))  # type: ignore[arg-type]
    logits = [driver.logits(list(enumerate(LENGTHS)), [2, 22, 62], 30 if split else None)]
    for sequences in chosen:
        cut = 1 if split and len(sequences) > 1 else None
        logits.append(driver.logits([(s, 1) for s in sequences], range(len(sequences)), cut))
    return logits


CHOSEN = ((0, 1, 2), (1,), (2, 0, 1), (0,), (2, 1), (1, 2, 0), (2,))
SIZES_CAPTURED, NUM_REPLAYED = 3, 4  # rows 3 are filled up to 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("llama"))


def check_logits(directory: Path) -> None:
    passes = GraphPasses(directory, AsOnADevice())
    found, expected = decode(passes, CHOSEN), decode(Passes(directory, ReferenceKernels()), CHOSEN)
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=TOLERANCE)
    assert passes.first.replayer.refusal is None
    assert (len(passes.first.graphs.captured), passes.first.graphs.num_replays) == (
        SIZES_CAPTURED,
        NUM_REPLAYED,
    )


def test_replayed_passes_give_the_logits_that_they_give_step_by_step(model: Path) -> None:
    check_logits(model)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_so_they_do_for_every_family(family: str, tmp_path: Path) -> None:
    check_logits(make_model(tmp_path, family))


def check_captures(directory: Path, split: bool, tp: int) -> None:
    """On tensors that have no numbers, whatever asked for one would raise. Prefill too, once its shapes have come."""
    passes = GraphPasses(directory, *(ReferenceKernels(device="meta") for _ in range(tp)))
    for _ in range(3):
        logits = decode(passes, CHOSEN[:2], split)
        assert [each.shape for each in logits] == [(n, VOCAB_SIZE) for n in (3, 3, 1)]
        assert {each.device for each in logits} == {META}
    for rank in passes.graph_ranks:
        assert (len(rank.graphs.captured), rank.graphs.num_replays) == (3, 5)
        assert any(plan.overlaps for plan in rank.plans) == split


def test_a_capture_of_woven_ranks_holds_nothing_of_the_host(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ThreadCommunicator, "no_graph_reason", None)
    check_captures(model, split=True, tp=2)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("split", "tp"), [(False, 1), (True, 2)])
def test_so_it_does_for_every_family(
    family: str, split: bool, tp: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ThreadCommunicator, "no_graph_reason", None)
    check_captures(make_model(tmp_path, family), split, tp)


def test_ranks_gather_the_logits_of_woven_passes(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ThreadCommunicator, "no_graph_reason", None)
    found = decode(GraphPasses(model, AsOnADevice(), AsOnADevice()), CHOSEN, split=True)
    for got, wanted in zip(found, decode(Passes(model, ReferenceKernels()), CHOSEN), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=TOLERANCE)


class Failing(FakeGraphs):
    """Can capture nothing."""

    def capture(self, work: Callable[[], object]) -> Graph:
        super().capture(work)
        raise GraphError("no memory left")


def test_a_rank_that_cannot_capture_says_so_once_and_still_meets_one_that_replays(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It pads its batches as the other does."""
    monkeypatch.setattr(ThreadCommunicator, "no_graph_reason", None)
    passes = GraphPasses(model, AsOnADevice(), AsOnADevice())
    monkeypatch.setattr(passes.graph_ranks[1].replayer, "_graphs", Failing())
    chosen = ((0, 1, 2), (2, 0, 1), (1, 2, 0))  # of one size: a fake capture meets the other rank twice
    found = decode(passes, chosen)
    for got, wanted in zip(found, decode(Passes(model, ReferenceKernels()), chosen), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=TOLERANCE)
    assert [rank.replayer.refusal for rank in passes.graph_ranks] == [None, "no memory left"]
    assert [rank.replayer.num_replayed for rank in passes.graph_ranks] == [2, 0]
    (message,) = (record.message for record in caplog.records if record.name == "interlace")
    assert message.startswith("no memory left; from now on passes run step by step. A smaller kv_cache_gb ")


def test_ranks_that_meet_on_the_host_run_step_by_step_as_they_are(model: Path) -> None:
    passes = GraphPasses(model, ReferenceKernels(device="meta"), ReferenceKernels(device="meta"))
    decode(passes, CHOSEN[:2])
    assert passes.first.replayer.refusal == "the ranks of communicator 'thread' meet on the host"
    assert (passes.first.plans, passes.first.graphs.captured) == ([], [])


def test_a_replay_issues_nothing_from_python_but_one_copy(model: Path) -> None:
    rank = GraphPasses(model, ReferenceKernels(device="meta")).first
    driver = Driver(rank, prompts(2))  # type: ignore[arg-type]
    driver.run([(0, 1), (1, 1)])
    with pytest.MonkeyPatch.context() as patch, Operations() as operations:
        patch.setattr(FakeGraph, "replay", lambda graph: None)
        driver.run([(2, 1), (0, 1)])
    assert (len(rank.plans), rank.replayer.num_replayed) == (2, 1)
    flat = [
        shape for name, shapes in operations.taken if name == "copy_" for shape in shapes if len(shape) == 1
    ]
    assert len(flat) == 1


def test_steps_are_observed_step_by_step_on_padded_batches(model: Path) -> None:
    passes = GraphPasses(model, AsOnADevice())
    rank, told = passes.first, []
    decode(passes, [(0, 1, 2)])
    row = torch.tensor([7], dtype=torch.int32)
    batch = ForwardBatch(
        row, row, row, torch.tensor([0, 1], dtype=torch.int32), row + 1, row[None] * 0, row * 0, row
    )
    with torch.inference_mode():
        logits = rank.replayer.execute(batch, lambda plan: lambda step, start, end: told.append(step))
    assert logits is not None
    assert logits.shape == (1, VOCAB_SIZE)
    assert tuple(told) == rank.plans[-1].steps
    assert rank.replayer.num_replayed == 0


def test_all_sizes_can_be_captured_beforehand_and_store_nothing(model: Path) -> None:
    passes = GraphPasses(model, AsOnADevice())
    rank, told = passes.first, []
    rank.rank.cache.fill_(0.5)
    rank.replayer.capture_decoding(lambda done, total: told.append((done, total)))
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert [plan.num_tokens for plan in rank.plans[::2]] == [4, 2, 1]
    assert (rank.rank.cache == 0.5).all()
    rank.plans.clear()
    decode(passes, CHOSEN)
    assert rank.graphs.num_replays == len(CHOSEN)


def test_more_rows_than_there_is_memory_for_run_as_they_are(model: Path) -> None:
    passes = GraphPasses(model, AsOnADevice())
    logits = Driver(passes, prompts(0)).run([(0, 3), (1, 20)])  # type: ignore[arg-type]
    assert [len(each) for each in logits] == [3, 20]
    assert passes.first.plans == []


def test_the_graphs_that_are_kept_are_bounded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interlace.engine.ranks.graph_replayer.MAX_DECODING", 1)
    passes = GraphPasses(model, ReferenceKernels(device="meta"))
    decode(passes, [(0,), (1,), (0, 1, 2), (0,), (2,)])
    assert (len(passes.first.graphs.captured), passes.first.replayer.num_replayed) == (3, 2)
    passes.first.replayer.close()
    decode(passes, [(0,)])
    assert len(passes.first.graphs.captured) == 5  # and prefill, whose shapes came again
