"""Woven passes on streams: no operation touches memory that another stream may still be using. Checked on no device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from interlace.models import parts
from interlace.models.batch import ForwardBatch
from support.device_ranks import Passes, Rank
from support.driver import Driver
from support.stream_races import Races, WatchedStreams
from support.tiny_models import FAMILIES, VOCAB_SIZE, make_model
from tokenweave.communicators import NullCommunicator
from tokenweave.kernels import ReferenceKernels
from tokenweave.plan import Lane, Op, Plan
from tokenweave.streams import StreamExecutor

LENGTHS = (1, 17, 40)
TOTAL = sum(LENGTHS)
WOVEN = replace(ForwardBatch.prefill(20, VOCAB_SIZE), split=9)


class OnStreams:
    """Runs the passes of a rank by a stream executor, all on the same streams."""

    def __init__(self, rank: Rank, change: Callable[[Plan], Plan] = lambda plan: plan) -> None:
        self.streams = WatchedStreams()
        self.races = Races(self.streams)
        self._rank, self._change = rank, change
        self._executor = StreamExecutor(self.streams)

    @torch.inference_mode()
    def execute(self, batch: ForwardBatch) -> Tensor:
        with self.races:
            forward = self._rank.forward(batch)
            self._executor.run(self._change(forward.plan), forward.handlers)
            return forward.logits.clone()  # as a sampler reads them, on the caller's stream


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Rank:
    directory = make_model(tmp_path_factory.mktemp("llama"))
    return Rank(directory, NullCommunicator(kernels=ReferenceKernels(device="meta")))


def test_passes_that_follow_each_other_race_nowhere(llama: Rank) -> None:
    on_streams = OnStreams(llama)
    for batch in (WOVEN, ForwardBatch.prefill(5, VOCAB_SIZE), WOVEN):
        on_streams.execute(batch)
    assert on_streams.races.num_touched > 50


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tp", [1, 2])
def test_nor_do_those_of_any_family_and_two_ranks(family: str, tp: int, tmp_path: Path) -> None:
    """Prompts and decoding, woven and whole, with some logits wanted, none and all."""
    directory = make_model(tmp_path, family)
    passes = Passes(directory, *(ReferenceKernels(device="meta") for _ in range(tp)))
    on_streams = [OnStreams(rank) for rank in passes.ranks]
    for rank, each in zip(passes.ranks, on_streams, strict=True):
        rank.execute = each.execute  # type: ignore[method-assign]
    prompts = [list(range(length + 2)) for length in LENGTHS]
    for wanted in (range(0, TOTAL, 7), (), range(TOTAL)):
        driver = Driver(passes, prompts, prompt_lens=LENGTHS)  # type: ignore[arg-type]
        driver.logits(list(enumerate(LENGTHS)), wanted, split=30)
        for split in (1, None):
            driver.logits([(sequence, 1) for sequence in range(len(LENGTHS))], range(len(LENGTHS)), split)
    assert all(each.races.num_touched > 100 for each in on_streams)


def without_an_edge(op: Op) -> Callable[[Plan], Plan]:
    """Plans in which one step of `op` does not wait for the step on another lane whose result it takes."""

    def change(plan: Plan) -> Plan:
        steps = list(plan.steps)
        at = next(
            at
            for at, step in enumerate(steps)
            if step.op is op and any(steps[other].lane is not step.lane for other in step.waits_for)
        )
        own = [other for other in steps[at].waits_for if steps[other].lane is steps[at].lane]
        steps[at] = replace(steps[at], waits_for=tuple(own))
        return Plan(plan.num_tokens, tuple(steps), plan.split)

    return change


@pytest.mark.parametrize("op", [Op.ATTENTION, Op.MLP, Op.REDUCE_NORM])
def test_an_edge_that_is_missing_is_a_race(llama: Rank, op: Op) -> None:
    OnStreams(llama).execute(WOVEN)
    with pytest.raises(AssertionError, match=r"does not wait for|may still be"):
        OnStreams(llama, without_an_edge(op)).execute(WOVEN)


def test_a_part_that_keeps_nothing_for_other_lanes_is_a_race(
    llama: Rank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PartOnDevice", parts.Part)
    with pytest.raises(AssertionError, match=r"may get memory that .* may still be using"):
        OnStreams(llama).execute(WOVEN)


def test_what_reads_another_streams_memory_has_to_wait_for_what_wrote_it() -> None:
    streams, tensor = WatchedStreams(), torch.zeros(2)
    with Races(streams):
        with streams.on(Lane.TRANSFER):
            tensor.add_(1)
        with pytest.raises(AssertionError, match="sum does not wait for add_ on transfer"):
            tensor.sum()
        streams.wait(Lane.COMPUTE, streams.record(Lane.TRANSFER))
        tensor.sum()


def test_what_writes_has_to_wait_for_what_reads() -> None:
    streams, tensor = WatchedStreams(), torch.zeros(2)
    with Races(streams):
        with streams.on(Lane.TRANSFER):
            tensor.sum()
        with pytest.raises(AssertionError, match="add_ writes what sum on transfer may still be reading"):
            tensor.add_(1)
