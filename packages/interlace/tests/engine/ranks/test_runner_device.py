"""A rank works where its kernels compute."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from interlace.engine.config import EngineConfig
from interlace.engine.ranks import device_executor
from interlace.engine.ranks.device_executor import DeviceExecutor
from interlace.engine.ranks.runner import Runner, wait_until_loaded
from interlace.engine.ranks.tracing import collect_recordings, start_recording
from interlace.models.batch import ForwardBatch
from interlace.models.sources import load_model
from support.device_ranks import AsOnADevice
from support.fake_graphs import FakeGraphs
from support.patience import PATIENCE_S
from support.tiny_models import VOCAB_SIZE, make_model
from tokenweave.communicators import NullCommunicator, thread_group
from tokenweave.kernels import Kernels, ReferenceKernels
from tokenweave.plan import Lane, Step, plan_forward
from tokenweave.streams import HostStreams
from tokenweave.trace import Trace

BATCHES = [replace(ForwardBatch.prefill(20, VOCAB_SIZE), split=7), ForwardBatch.prefill(1, VOCAB_SIZE)]
META = torch.device("meta")


@pytest.mark.parametrize("executor", ["lanes", "sequential"])
def test_a_rank_runs_batches_on_the_device_of_its_kernels(tmp_path: Path, executor: str) -> None:
    """Also what runs beside its compute lane, which has kernels of its own."""
    directory = make_model(tmp_path)
    config = EngineConfig(str(directory), communicator="null", num_kv_blocks=8, executor=executor)
    communicator = NullCommunicator(kernels=ReferenceKernels(device=META))
    with closing(Runner(config, load_model(str(directory)), communicator)) as runner:
        assert {runner.cache.tensor.device, runner.communicator.kernels.device} == {META}
        for num_tokens in (20, 1, 1, 1):  # one token: what would be replayed where kernels are native
            logits = runner.execute(ForwardBatch.prefill(num_tokens, VOCAB_SIZE))
            assert (logits.device, logits.shape) == (META, (1, VOCAB_SIZE))


@pytest.fixture
def on_fake_device(tmp_path: Path) -> Callable[..., Runner]:
    """`on_fake_device(executor="lanes")`: a rank that is told to be on a GPU, whose tensors are on the CPU."""
    directory = make_model(tmp_path)

    def make(executor: str = "lanes", kernels: Kernels | None = None) -> Runner:
        config = EngineConfig(
            str(directory),
            device="cuda",
            dtype="float32",
            num_kv_blocks=8,
            max_num_seqs=1,
            executor=executor,
        )
        communicator = NullCommunicator(kernels=kernels or ReferenceKernels())
        return Runner(config, load_model(str(directory)), communicator)

    return make


def test_woven_passes_on_a_device_go_over_streams_and_the_oracles_over_one(
    on_fake_device: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[Lane] = []
    monkeypatch.setattr(HostStreams, "wait", lambda self, stream, event: waits.append(stream))
    logits = {}
    for executor in ("sequential", "lanes"):
        with closing(on_fake_device(executor)) as runner:
            logits[executor] = [runner.execute(batch).clone() for batch in BATCHES]
        assert (executor == "lanes") is (Lane.TRANSFER in waits)
    assert all(map(torch.equal, *logits.values()))


@pytest.mark.parametrize("executor", ["lanes", "sequential"])
def test_a_trace_of_a_device_has_every_step_and_says_how_its_clock_was_placed(
    on_fake_device: Callable[..., Runner], executor: str
) -> None:
    with closing(on_fake_device(executor)) as runner:
        start_recording(runner)
        for batch in BATCHES:
            runner.execute(batch)
        trace = Trace.join(*collect_recordings(runner))
    assert "devices' events placed on it within" in trace.clock
    (recording,) = trace.recordings
    assert [done.plan.split for done in recording.passes] == [7, None]
    for done in recording.passes:
        assert [span.step for span in done.spans()] == list(done.plan.steps)


def test_passes_that_are_traced_run_step_by_step_and_as_graphs_again_after_it(
    on_fake_device: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = FakeGraphs()
    monkeypatch.setattr("interlace.engine.ranks.runner.graphs_on", lambda kernels: graphs)
    _, decoding = BATCHES
    with closing(on_fake_device(kernels=AsOnADevice())) as runner:
        runner.execute(decoding)
        start_recording(runner)
        runner.execute(decoding)
        trace = Trace.join(*collect_recordings(runner))
        assert graphs.num_replays == 1
        runner.execute(decoding)
        assert graphs.num_replays == 2
    (done,) = trace.recordings[0].passes
    assert [span.step for span in done.spans()] == list(done.plan.steps)


def test_an_observer_of_a_device_is_told_when_the_times_are_collected(
    on_fake_device: Callable[..., Runner],
) -> None:
    told: list[Step] = []
    with closing(on_fake_device()) as runner:
        runner.observe = lambda step, start_s, end_s: told.append(step)
        runner.execute(BATCHES[0])
        assert told == []
        assert runner.streams is not None
        runner.streams.collect()
    assert told


def test_a_rank_that_loads_longer_than_the_timeout_is_waited_for() -> None:
    early, late = thread_group(2, timeout_s=0.05)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_until_loaded, early)
        time.sleep(0.1)
        wait_until_loaded(late)
        waiting.result(PATIENCE_S)


def test_reductions_of_a_plan_take_its_ctas_and_products_leave_as_many_sms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[tuple[object, ...]] = []
    taken: list[bool] = []
    monkeypatch.setattr(device_executor, "CudaStreams", lambda *arguments: made.append(arguments))
    monkeypatch.setattr(device_executor, "StreamExecutor", lambda streams: RecordingRuns())
    device = torch.device("cuda", 1)
    communicator: Any = SimpleNamespace(kernels=SimpleNamespace(device=device), wait_for=lambda event: None)
    ctas: Any = SimpleNamespace(left_sms=8, take=lambda is_woven: taken.append(is_woven))
    executor = DeviceExecutor(communicator, True, ctas)
    assert made == [(device, 8, communicator.wait_for)]
    for split in (None, 4, None):
        executor.run(plan_forward(1, 8, split), {})
    assert taken == [False, True, False]


class RecordingRuns:
    """An executor that runs nothing."""

    def run(self, *_: object) -> None: ...

    def run_in_order(self, *_: object) -> None: ...
