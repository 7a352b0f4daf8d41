"""Woven and replayed = woven call by call = sequential: the same bits, over every way for ranks to meet."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from interlace import LLM, SamplingParams
from interlace.engine.config import EngineConfig
from interlace.engine.ranks.group import RankGroup
from interlace.engine.ranks.launch import start
from interlace.errors import RankFailed
from support.driver import Driver
from support.patience import PATIENCE_S, wait_until
from support.replay_programs import Outcome, decode_on_ranks
from support.tiny_models import FAMILIES, make_model
from tokenweave.plan import plan_forward

FAST = "2GB/s,10us"  # looks at what comes through, not at how long it takes
DENSE = sorted(FAMILIES.keys() - {"mixtral", "qwen2_moe", "qwen3_moe", "olmo2"})
# Even splits and uneven ones, each more often than there are phases of the buffers; in between what comes once.
PASSES = [(4, 2)] * 6 + [(6, 1)] * 6 + [(2, 1), (6, 5)] + [(4, 2), (6, 1)] * 3 + [(5, 2), (4, 2), (6, 1)]


def decode(
    kind: str, size: int, model: Path, replaying: list[int], *, woven: bool = True, dtype: str = "float32"
) -> list[Outcome]:
    sizes, splits = zip(*PASSES, strict=True)
    return decode_on_ranks(kind, size, "native", model, sizes, replaying, 0, splits if woven else None, dtype)


@pytest.mark.parametrize("family", DENSE)
def test_every_dense_family_replays_woven_passes_with_the_bits_of_whole_ones(
    family: str, tmp_path: Path
) -> None:
    model = make_model(tmp_path, family)
    expected = decode("shm-symmetric-threads", 2, model, [], woven=False)
    got = decode("shm-symmetric-threads", 2, model, [0, 1])
    assert torch.equal(got[0][0], expected[0][0])
    assert [(refusal, replayed > 0) for _, replayed, refusal in got] == [(None, True)] * 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("kind", ["shm-symmetric-threads", "linked-shm-symmetric-threads", "linked-thread"])
def test_ranks_replay_woven_passes_however_they_meet(
    kind: str, size: int, dtype: str, tmp_path: Path
) -> None:
    model = make_model(tmp_path, "llama_9_heads")
    ranks = list(range(size))
    if size == 1:
        kind = "linked-null" if kind == "linked-thread" else "null"
    expected = decode(kind, size, model, [], woven=False, dtype=dtype)
    by_call = decode(kind, size, model, [], dtype=dtype)
    got = decode(kind, size, model, ranks, dtype=dtype)
    assert torch.equal(by_call[0][0], expected[0][0])
    assert torch.equal(got[0][0], expected[0][0])
    assert [(refusal, replayed > 0) for _, replayed, refusal in got] == [(None, True)] * size


@pytest.mark.parametrize("replaying", [[0], [1]])
def test_a_rank_that_replays_meets_one_that_runs_its_lanes_call_by_call(
    replaying: list[int], tmp_path: Path
) -> None:
    model = make_model(tmp_path)
    expected = decode("shm-symmetric-threads", 2, model, [])
    got = decode("shm-symmetric-threads", 2, model, replaying)
    assert torch.equal(got[0][0], expected[0][0])
    assert [replayed > 0 for _, replayed, _ in got] == [rank in replaying for rank in range(2)]


@pytest.mark.parametrize("kind", ["thread", "linked-thread", "linked-shm-symmetric-threads"])
def test_passes_in_one_part_are_replayed_too_where_ranks_meet_in_python(kind: str, tmp_path: Path) -> None:
    model = make_model(tmp_path)
    expected = decode(kind, 2, model, [], woven=False)
    got = decode(kind, 2, model, [0, 1], woven=False)
    assert torch.equal(got[0][0], expected[0][0])
    assert [(refusal, replayed > 0) for _, replayed, refusal in got] == [(None, True)] * 2


@pytest.mark.slow
@pytest.mark.parametrize("woven", [False, True])
def test_ranks_over_torch_replay_with_the_same_bits(woven: bool, tmp_path: Path) -> None:
    """Also where the sum goes in two exchanges: of rows enough for that."""
    model = make_model(tmp_path)
    expected = decode("torch", 2, model, [], woven=False)
    got = decode("torch", 2, model, [0, 1], woven=woven)
    assert torch.equal(got[0][0], expected[0][0])
    assert [(refusal, replayed > 0) for _, replayed, refusal in got] == [(None, True)] * 2


def config_of(model: Path, communicator: str, link: str) -> EngineConfig:
    return EngineConfig(
        str(model), tp=2, communicator=communicator, link=link, weave="always", dtype="float32",
        num_kv_blocks=64, threads=1, timeout_s=PATIENCE_S,
    )  # fmt: skip


def num_replayed(group: RankGroup) -> int:
    assert group.runner.replayer is not None
    return group.runner.replayer.num_replayed


def decode_on(driver: Driver) -> NoReturn:
    while True:
        driver.run([(s, 1) for s in range(4)])


def test_requests_that_join_leave_and_are_preempted_get_the_tokens_of_whole_passes(tmp_path: Path) -> None:
    model = make_model(tmp_path)

    def tokens(weave: str, replay: bool) -> list[list[int]]:
        """Blocks for fewer sequences than there are: some are preempted."""
        with LLM(
            str(model), tp=2, communicator="thread", link=FAST, weave=weave, replay=replay, dtype="float32",
            threads=1, num_kv_blocks=10, max_num_seqs=4, max_model_len=100,
        ) as llm:  # fmt: skip
            params = [
                SamplingParams(max_tokens=30 + n, temperature=0.8, seed=n, ignore_eos=True) for n in range(6)
            ]
            outputs = llm.generate([[n + 5] * (9 + 4 * n) for n in range(6)], params)
            return [list(output.outputs[0].token_ids) for output in outputs]

    expected = tokens("never", False)
    assert tokens("always", True) == expected
    assert tokens("always", False) == expected


def test_a_rank_killed_while_passes_are_replayed_ends_the_job_with_its_name(tmp_path: Path) -> None:
    """A pass takes a tenth of a second of waiting for the link, so that the kill is in the middle of one."""
    group = start(config_of(make_model(tmp_path), "shm", "1GB/s,5ms"))
    try:
        driver = Driver(group, [list(range(5, 60))] * 4)
        driver.run([(s, 1) for s in range(4)])

        def kill() -> None:
            wait_until(lambda: num_replayed(group) > 0, "a pass that is replayed")
            os.kill(group.runner.ranks[1].pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(RankFailed, match=r"rank 1 .*was killed by SIGKILL"):
            decode_on(driver)
        killer.join()
    finally:
        group.close()


def test_an_abort_in_the_middle_of_a_replayed_pass_ends_it(tmp_path: Path) -> None:
    group = start(config_of(make_model(tmp_path), "thread", "1GB/s,5ms"))
    try:
        driver = Driver(group, [list(range(5, 60))] * 4)

        def abort() -> None:
            wait_until(lambda: num_replayed(group) > 0, "a pass that is replayed")
            group.runner.communicator.abort("enough")

        other = threading.Thread(target=abort)
        other.start()
        with pytest.raises(RankFailed, match="enough"):
            decode_on(driver)
        other.join()
    finally:
        group.close()


def test_a_trace_of_replayed_passes_has_the_times_of_both_lanes(tmp_path: Path) -> None:
    group = start(config_of(make_model(tmp_path), "thread", FAST))
    try:
        driver = Driver(group, [list(range(5, 60))] * 4)
        for _ in range(12):
            driver.run([(s, 1) for s in range(4)])
        before = num_replayed(group)
        plan_forward.cache_clear()  # the plan of the traced pass is another object than that of the capture
        group.start_trace()
        driver.run([(s, 1) for s in range(4)])
        trace = group.end_trace()
        assert num_replayed(group) == before + 1
        for recording in trace.recordings:
            [one] = recording.passes
            times = [(one.times[2 * at], one.times[2 * at + 1]) for at in range(len(one.plan.steps))]
            assert one.plan.split == 2
            for (start_s, end_s), step in zip(times, one.plan.steps, strict=True):
                assert start_s <= end_s
                assert all(times[place][1] <= start_s for place in step.waits_for)
    finally:
        group.close()
