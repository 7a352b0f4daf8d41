"""Tiers that fail under a running engine: each failure costs a miss, and never a request or a token."""

from __future__ import annotations

import logging
import math
import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from interlace import LLM, SamplingParams
from interlace.engine.cache.tier_mover import TierMover
from interlace.engine.output import RequestOutput
from interlace.engine.ranks.runner import Runner
from interlace.engine.sequence import Sequence
from interlace.errors import EngineError, RankFailed, RequestFailed
from support.patience import PATIENCE_S, wait_until
from support.tiny_models import VOCAB_SIZE, make_model

PARAMS = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
TEXTS = [[(11 * i + n) % VOCAB_SIZE for i in range(90)] for n in range(4)]
GOOD = "dram:4MiB"
SLOW = "cxl:4MiB@0.001GB/s,1us"  # 8 ms for a block
STALLED = "cxl:4MiB@1GB/s,9900ms"  # answers after ten seconds, and nobody expects that


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
def expected(model: Path) -> list[list[int]]:
    """The tokens that follow TEXTS where nothing is kept."""
    with opened(model, prefix_cache=False) as llm:
        return [output.token_ids for output in llm.generate(TEXTS, PARAMS)]


@pytest.fixture
def movers(monkeypatch: pytest.MonkeyPatch) -> dict[int, TierMover]:
    """Those of the engines that a test opens in this process, by their rank."""
    found: dict[int, TierMover] = {}
    make = Runner._make_mover

    def noted(runner: Runner, *arguments: Any) -> TierMover | None:
        mover = make(runner, *arguments)
        if mover is not None:
            found[runner.communicator.rank] = mover
        return mover

    monkeypatch.setattr(Runner, "_make_mover", noted)
    return found


@pytest.fixture(autouse=True)
def every_tier_is_given_back(movers: dict[int, TierMover]) -> Iterator[None]:
    before = {name for name in os.listdir("/dev/shm") if "interlace" in name or "torch" in name}
    yield
    assert all(mover._memory.context.closed for mover in movers.values())
    wait_until(
        lambda: {n for n in os.listdir("/dev/shm") if "interlace" in n or "torch" in n} <= before,
        "the end of what the test left in /dev/shm",
    )


def opened(model: Path, *tiers: str, **options: Any) -> LLM:
    """With a local cache that holds little more than one of TEXTS."""
    fixed = {"dtype": "float32", "threads": 1, "num_kv_blocks": 8, "max_model_len": 120, "kv_fetch": "always"}
    return LLM(str(model), **{**fixed, "kv_tiers": tiers, **options})


def ask(llm: LLM, expected: list[list[int]], *texts: int) -> list[RequestOutput]:
    """The outputs of some of TEXTS, one after the other."""
    outputs = [llm.generate([TEXTS[text]], PARAMS)[0] for text in texts]
    assert [output.token_ids for output in outputs] == [expected[text] for text in texts]
    llm._engine.check()
    return outputs


def ask_until_interrupted(llm: LLM, expected: list[list[int]], is_over: threading.Event) -> None:
    try:
        ask(llm, expected, *[0, 1, 2] * 10_000)
    finally:
        is_over.set()


def num_fetched(outputs: list[RequestOutput]) -> list[int]:
    return [output.metrics.num_fetched_tokens for output in outputs]


def num_cached(outputs: list[RequestOutput]) -> list[int]:
    return [output.metrics.num_cached_tokens for output in outputs]


def slots_of(llm: LLM, text: int) -> list[int]:
    """The slots of the top tier that have the blocks of one of TEXTS."""
    names = llm._engine._names_of(TEXTS[text], PARAMS)
    sequence = Sequence("a text", TEXTS[text], PARAMS, 0, 120, names)
    tiers = llm._engine.scheduler.tiers
    assert tiers is not None
    places = [tiers.index.find(name) for name in sequence.names_before(80)]
    return [place.slot for place in places if place is not None and place.tier == 0]


def poison(mover: TierMover, slots: list[int]) -> None:
    buffer = mover._memory.buffers[0]
    for slot in slots:
        buffer.tier.poison(buffer.address + slot * mover.block_bytes + 100, 1)


def settle(*movers: TierMover) -> None:
    for mover in movers:
        wait_until(lambda mover=mover: not mover.is_busy and not mover._stores, "the end of the stores")


@pytest.mark.parametrize("write", ["through", "back"])
def test_a_poisoned_line_makes_a_hit_a_miss_and_its_slot_is_used_no_more(
    model: Path,
    expected: list[list[int]],
    movers: dict[int, TierMover],
    write: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with opened(model, GOOD, kv_tier_write=write) as llm:
        ask(llm, expected, 0, 1, 2, 3)
        settle(movers[0])
        slots = slots_of(llm, 1)
        assert len(slots) == 5
        poison(movers[0], slots[2:3])
        missed, found = ask(llm, expected, 1, 2)
        assert missed.metrics.num_cached_tokens < 80
        assert found.metrics.num_cached_tokens == 80, "its neighbours are hits"
        assert num_cached(ask(llm, expected, 1, 2, 0, 3, 1)) == [80] * 5
        for text in range(4):
            assert slots[2] not in slots_of(llm, text)
        assert [record.levelname for record in caplog.records] == ["WARNING"], caplog.text


def test_a_tier_that_is_poisoned_all_over_is_given_up(
    model: Path, expected: list[list[int]], movers: dict[int, TierMover], caplog: pytest.LogCaptureFixture
) -> None:
    """It can neither be read nor written."""
    with opened(model, GOOD) as llm:
        ask(llm, expected, 0, 1, 2)
        settle(movers[0])
        poison(movers[0], [*range(llm._ranks.tier_capacities[0])])
        for _ in range(3):
            assert num_fetched(ask(llm, expected, 0, 1, 2, 3)) == [0] * 4
        tiers = llm._engine.scheduler.tiers
        assert tiers is not None
        assert not len(tiers.index)
        assert "is used no more" in caplog.text
        assert len(caplog.records) <= 8, caplog.text  # told when failures have doubled


@pytest.mark.parametrize("write", ["through", "back"])
def test_a_stalled_tier_costs_misses_and_is_used_no_more(
    model: Path, expected: list[list[int]], write: str, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(model, STALLED, kv_tier_write=write, kv_tier_timeout_s=0.05) as llm:
        for _ in range(3):
            assert num_fetched(ask(llm, expected, 0, 1, 2, 0)) == [0] * 4
        assert f"the tier {STALLED!r} below the KV cache is used no more" in caplog.text
        assert len(caplog.records) <= 3, caplog.text


@pytest.mark.slow
def test_a_tier_below_a_stalled_one_is_used_in_its_place(
    model: Path, expected: list[list[int]], movers: dict[int, TierMover]
) -> None:
    """Though what was to come down from there never did."""
    with opened(model, STALLED.replace("4MiB", "40KiB"), GOOD, kv_tier_timeout_s=2.0) as llm:
        ask(llm, expected, 0, 1, 2, 3, 0)
        assert movers[0].traffic[0].is_given_up
        movers[0]._timeout_s = movers[0]._stores.timeout_s = PATIENCE_S
        for _ in range(3):
            ask(llm, expected, 0, 1, 2, 3)
        assert num_fetched(ask(llm, expected, 0, 1, 2, 3)) == [80] * 4
        assert not movers[0].traffic[1].is_given_up


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("fault", ["poison", "stall"])
def test_a_tier_that_fails_on_one_rank_is_a_miss_on_all(
    model: Path, expected: list[list[int]], movers: dict[int, TierMover], fault: str, victim: int
) -> None:
    with opened(model, GOOD, tp=2, communicator="thread") as llm:
        ask(llm, expected, 0, 1, 2)
        settle(*movers.values())
        if fault == "poison":
            poison(movers[victim], slots_of(llm, 0))
        else:
            movers[victim]._health.give_up([1])
        assert num_fetched(ask(llm, expected, 0)) == [0]
        assert num_fetched(ask(llm, expected, 1)) == [80 if fault == "poison" else 0]
        for _ in range(2):
            ask(llm, expected, 2, 3, 0)
        assert num_fetched(ask(llm, expected, 2)) == [80 if fault == "poison" else 0]


def test_a_stalled_tier_is_given_up_before_other_ranks_give_up_this_one(
    model: Path, expected: list[list[int]], movers: dict[int, TierMover]
) -> None:
    slow = {"kv_tier_timeout_s": 1000.0, "timeout_s": PATIENCE_S}
    with opened(model, GOOD, tp=2, communicator="thread", **slow) as llm:
        ask(llm, expected, 0)
        assert [mover._most_s for mover in movers.values()] == [PATIENCE_S / 2] * 2
    with opened(model, GOOD, **slow):
        assert movers[0]._most_s == math.inf


@pytest.mark.parametrize("write", ["through", "back"])
@pytest.mark.parametrize("tiers", [["dram:20KiB"], ["dram:20KiB", "low:30KiB"], ["dram:9KiB"]])
def test_a_full_tier_costs_misses(
    model: Path, expected: list[list[int]], tiers: list[str], write: str, movers: dict[int, TierMover]
) -> None:
    with opened(model, *tiers, kv_tier_write=write) as llm:
        room = 16 * sum(llm._ranks.tier_capacities)
        assert 16 <= room < 4 * 80
        for _ in range(3):
            outputs = ask(llm, expected, 0, 1, 2, 3)
            assert all(fetched <= room for fetched in num_fetched(outputs))
        assert all(traffic.written_bytes for traffic in movers[0].traffic)


def test_closing_ends_the_stores_under_way(model: Path, movers: dict[int, TierMover]) -> None:
    with opened(model, GOOD) as llm:
        llm.generate([TEXTS[0]], PARAMS)
    before = len(os.listdir("/proc/self/task"))
    with opened(model, STALLED, kv_tier_timeout_s=PATIENCE_S) as llm:
        llm.generate([TEXTS[0]], PARAMS)
        assert movers[0]._stores
    wait_until(lambda: len(os.listdir("/proc/self/task")) <= before, "the end of the copying threads")


def test_a_reset_while_stores_are_under_way_has_nothing_found_that_was_there_before(
    model: Path, expected: list[list[int]]
) -> None:
    with opened(model, SLOW) as llm:
        for text in (0, 1, 2, 0, 3, 1):
            ask(llm, expected, text)
            llm.reset_prefix_cache()
            assert num_fetched(ask(llm, expected, text)) == [0]


def test_two_engines_have_tiers_of_their_own(model: Path, expected: list[list[int]]) -> None:
    with opened(model, SLOW) as one, opened(model, SLOW, kv_tier_write="back") as other:
        for text in (0, 1, 2):
            ask(one, expected, text)
        assert num_fetched(ask(other, expected, 0)) == [0]
        assert num_fetched(ask(one, expected, 0)) == [80]
        one.close()
        ask(other, expected, 1, 2)
        assert num_fetched(ask(other, expected, 0)) == [80]


def test_an_interrupt_leaves_an_engine_that_goes_on_or_says_why(
    model: Path, expected: list[list[int]]
) -> None:
    with opened(model, SLOW) as llm:
        ask(llm, expected, 0, 1, 2)
        is_over = threading.Event()

        def interrupt() -> None:
            while not is_over.wait(0.03):  # one that strikes where Python cannot raise it is lost
                os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            ask_until_interrupted(llm, expected, is_over)
        thread.join()
        with suppress(EngineError):  # a step was interrupted half-way
            ask(llm, expected, 2, 1, 0)


def test_what_comes_of_a_row_without_numbers_is_in_no_tier(
    model: Path, expected: list[list[int]], movers: dict[int, TierMover], monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(model, GOOD) as llm:
        ask(llm, expected, 0)
        execute = type(llm._ranks).execute

        def broken(*arguments: Any) -> Any:
            return torch.full_like(execute(*arguments), float("nan"))

        with monkeypatch.context() as patch:
            patch.setattr(type(llm._ranks), "execute", broken)
            with pytest.raises(RequestFailed, match=r"largest logit .* is nan"):
                llm.generate([TEXTS[1]], PARAMS)
        assert slots_of(llm, 1) == []
        assert num_cached(ask(llm, expected, 1, 2, 1, 0)) == [0, 0, 80, 80]


@pytest.mark.slow
@pytest.mark.parametrize("communicator", ["shm", "torch"])
def test_a_rank_killed_while_tiers_are_in_use_leaves_nothing(
    tmp_path: Path, communicator: str, movers: dict[int, TierMover]
) -> None:
    model = make_model(tmp_path, "llama", max_position_embeddings=200_000, num_hidden_layers=4)
    endless = SamplingParams(temperature=0, max_tokens=100_000, ignore_eos=True)
    changes = {"tp": 2, "communicator": communicator, "num_kv_blocks": 10_000, "max_model_len": None}
    changes["kv_tier_timeout_s"] = PATIENCE_S
    llm = opened(model, STALLED, **changes)
    ranks: Any = llm.describe()["ranks"]
    chunks = llm.stream([i % VOCAB_SIZE for i in range(600)], endless)
    next(chunks)
    assert movers[0]._stores
    os.kill(ranks[1]["pid"], signal.SIGKILL)
    with pytest.raises(RankFailed, match=r"rank 1 .*was killed by SIGKILL"):
        for _ in chunks:
            pass
    llm.close()
    wait_until(lambda: not Path(f"/proc/{ranks[1]['pid']}").exists(), "the end of the rank")


@pytest.mark.slow
@pytest.mark.parametrize("write", ["through", "back"])
@pytest.mark.parametrize("seed", range(3))
def test_requests_get_their_tokens_whatever_fails(
    model: Path, seed: int, write: str, movers: dict[int, TierMover], caplog: pytest.LogCaptureFixture
) -> None:
    """Random texts, aborts, resets and faults, over tiers that are full, slow or about to fail."""
    chance = random.Random(seed)
    beginnings = [[chance.randrange(VOCAB_SIZE) for _ in range(90)] for _ in range(4)]
    texts = [
        [
            *chance.choice(beginnings)[: chance.randrange(1, 90)],
            *(chance.randrange(VOCAB_SIZE) for _ in range(9)),
        ]
        for _ in range(12)
    ]
    tp = chance.choice([1, 2])
    tiers = chance.choice([[SLOW.replace("4MiB", "64KiB"), "low:200KiB"], ["dram:100KiB"], [GOOD]])
    shape = {
        "num_kv_blocks": 20,
        "max_num_seqs": 4,
        "max_num_batched_tokens": chance.choice([32, 128]),
        "kv_fetch": chance.choice(["always", "auto"]),
        "kv_tier_policy": chance.choice(["lru", "tinylfu"]),
        "tp": tp,
        "weave": chance.choice(["auto", "always"]),
        "communicator": "thread" if tp > 1 else "auto",
    }
    with opened(model, prefix_cache=False, **shape) as llm:
        wanted = [output.token_ids for output in llm.generate(texts, PARAMS)]
    caplog.set_level(logging.ERROR)
    with opened(model, *tiers, kv_tier_write=write, **shape) as llm:
        for round_ in range(25):
            asked = chance.sample(range(len(texts)), 3)
            streams = [llm.stream(texts[text], PARAMS) for text in asked]
            for text, stream in zip(asked, streams, strict=True):
                got = []
                for chunk in stream:
                    got += chunk.token_ids
                    if chance.random() < 0.05:
                        stream.close()
                assert got == wanted[text][: len(got)], (round_, text)
            fate, mover = chance.random(), movers[chance.randrange(tp)]
            if fate < 0.15:
                llm.reset_prefix_cache()
            elif fate < 0.4:
                poison(mover, [chance.randrange(llm._ranks.tier_capacities[0])])
            elif fate < 0.43:
                mover._health.give_up([1])
            llm._engine.check()
