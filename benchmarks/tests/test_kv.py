"""Tiers below the KV cache: what the rows make of their answers; and each row on a small model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.kv import hidden, no_reuse, sweep
from benchmarks.kv.hidden import Hidden
from benchmarks.kv.hits import COMPUTED, COPY, FETCH, LOCAL, PEER, TIER, Hits
from benchmarks.kv.run import ROWS, chosen
from benchmarks.kv.setting import MOST_GBPS, Setting, link_text
from benchmarks.kv.sweep import CHOICE, FETCHED, LinkFigures
from benchmarks.kv.transfer import LoneFetch
from emucxl.bench.harness import Samples
from interlace.cache.kv_tier import KvTierSpec
from interlace.cli.bench.tiered import Answer
from interlace.errors import BenchError
from support.tiny_models import make_model


def answers(*firsts_ms: float, pass_ms: float = 0.0, **figures: Any) -> list[Answer]:
    return [Answer(first_ms / 1e3, [1], pass_s=pass_ms / 1e3, **figures) for first_ms in firsts_ms]


def test_rows_are_chosen_by_name_in_their_own_order() -> None:
    assert chosen("") == ROWS
    assert chosen("sweep, hits") == ("hits", "sweep")
    with pytest.raises(BenchError, match="got rows"):
        chosen("hit")


def test_a_hit_is_compared_round_by_round() -> None:
    times = {
        TIER: answers(90, 100),
        LOCAL: answers(80, 85),
        COMPUTED: answers(1600, 1700),
        PEER: answers(160, 170),
    }
    found = Hits(times, {FETCH: Samples((0.01, 0.02)), COPY: Samples((0.009, 0.02))}, 40_000_000)
    got = {target.name: (target.got.values, target.is_met) for target in found.targets()}
    assert got["hit in DRAM - hit in local memory, ms"] == (pytest.approx((10, 15)), True)
    assert got["hit in local memory / computed"] == (pytest.approx((0.05, 0.05)), True)
    assert got["fetch alone from DRAM, GB/s"] == (pytest.approx((4, 2)), False)
    assert got["fetch alone / strided copy, speed"] == (pytest.approx((0.9, 1)), True)
    assert got["hit in local memory / vLLM's own hit"] == (pytest.approx((0.5, 0.5)), True)


def test_what_a_pass_takes_longer_is_not_hidden() -> None:
    pairs = {
        hidden.LINK: answers(100, pass_ms=83, fetch_s=0.05, waited_s=0.01),
        LOCAL: answers(90, pass_ms=80),
    }
    found = Hidden(1.0, pairs, Samples((0.04,)), [])
    assert found.share_of("pass_s").values == pytest.approx((0.925,))
    assert found.share_of("first_s").values == pytest.approx((0.75,))
    assert found.by_waits.values == pytest.approx((0.8,))
    assert [target.is_met for target in found.targets()] == [True]


def test_the_choice_is_held_against_the_better_way_and_where_fetching_is_dear_against_computing() -> None:
    close = LinkFigures(0.03, {CHOICE: answers(80), FETCHED: answers(120), COMPUTED: answers(100)})
    quick = LinkFigures(1.0, {CHOICE: answers(52), FETCHED: answers(50), COMPUTED: answers(100)})
    dear = LinkFigures(0.01, {CHOICE: answers(101), COMPUTED: answers(100)})
    assert [each.better for each in (close, quick, dear)] == [COMPUTED, FETCHED, COMPUTED]
    assert [each.are_close for each in (close, quick, dear)] == [True, False, False]
    assert [(target.got.median, target.is_met) for target in sweep.targets([close, quick, dear])] == [
        (pytest.approx(1.04), False),
        (pytest.approx(0.8), True),
        (pytest.approx(1.01), True),
    ]
    assert len(sweep.targets([quick])) == 1


@pytest.mark.parametrize("gbps", [0.0123456, 0.5, MOST_GBPS])
def test_a_link_is_written_as_tiers_read_it(gbps: float) -> None:
    timing = KvTierSpec.parse(f"link:1MB@{link_text(gbps)},5us").timing
    assert timing is not None
    assert timing.read_bandwidth_gbps == pytest.approx(gbps, rel=5e-3)


def test_a_fetch_alone_and_a_strided_copy_bring_the_same_pieces() -> None:
    lone = LoneFetch("dram:1MB", torch.zeros(3, 2, 4, 16, dtype=torch.bfloat16), num_blocks=5)
    try:
        lone.check()
        assert lone.size_bytes == 3 * 5 * 4 * 16 * 2
        assert np.unique(lone._local).size > 50  # and they are not all the same
        assert lone.fetch() > 0
        assert lone.copy() > 0
    finally:
        lone.close()


def test_a_fetch_that_brings_other_bytes_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    lone = LoneFetch("dram:1MB", torch.zeros(2, 2, 4, 16), num_blocks=3)
    try:
        monkeypatch.setattr(lone, "fetch", lambda: 0.1)
        with pytest.raises(BenchError, match="nothing was timed"):
            lone.check()
    finally:
        lone.close()


def test_hits_are_found_where_they_should_be(invoke: Callable[..., Any], tmp_path: Path) -> None:
    make_model(tmp_path)
    result = invoke("kv", "--quick", "--rows", "hits", "--threads", "1", "--json", "--model", str(tmp_path))
    assert result.exit_code == 0, result.output
    first, copies = json.loads(result.stdout)["runs"]
    fetched = {row[0]: int(row[3]) for row in first["rows"]}
    assert fetched.pop(TIER) <= 64  # as much as the engine chooses
    assert fetched == {LOCAL: 0, COMPUTED: 0}
    assert {FETCH, COPY} <= {row[0] for row in copies["rows"]}


def test_tiers_that_nobody_finds_anything_in_are_measured(tmp_path: Path) -> None:
    make_model(tmp_path)
    setting = Setting.of(str(tmp_path), 1, 1, quick=True)
    found = no_reuse.measure(setting)
    assert [len(no_reuse.report(setting, found).rows), len(no_reuse.targets(found))] == [2, 2]
    assert all(samples.lowest > 0 for rates in found.values() for samples in rates.values())


@pytest.mark.slow
def test_every_row_runs_on_a_small_model(invoke: Callable[..., Any], tmp_path: Path) -> None:
    make_model(tmp_path)
    result = invoke("kv", "--quick", "--threads", "1", "--json", "--model", str(tmp_path))
    assert result.exit_code == 0, result.output
    runs = json.loads(result.stdout)["runs"]
    assert len(runs) == 5
    over_link, links = runs[2], runs[4]
    assert "modelled" in over_link["title"]
    assert over_link["results"]["pass_with_fetch"]["kind"] == "modelled"
    assert [row[0].endswith("MB/s") for row in links["rows"]] == [True, True]
    assert links["rows"][0][1] == ""  # there it is too dear to fetch everything
