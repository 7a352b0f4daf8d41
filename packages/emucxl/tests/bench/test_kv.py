from __future__ import annotations

import json
from typing import Any

import pytest

from emucxl import native
from emucxl.bench import kv_experiment as experiment
from support.fake_tiers import FakeTier

CASES = [
    pytest.param(policy, x, figure, id=f"{policy}-{x}")
    for policy, figures in experiment.PUBLISHED.items()
    for x, figure in zip(experiment.XS, figures, strict=True)
]


def percent(policy: str, keys: list[int]) -> float:
    stats = experiment.play(keys, policy, FakeTier("local"), FakeTier("remote"))
    return experiment.percentage(stats.local_hits, stats.local_hits + stats.remote_hits)


@pytest.mark.parametrize(("policy", "x", "figure"), CASES)
def test_the_published_percentages_come_out_to_the_digit(policy: str, x: int, figure: float) -> None:
    if not experiment.has_published_rand():
        pytest.skip("this C library's rand is not glibc's")
    assert percent(policy, experiment.requests(x)) == figure


@pytest.mark.parametrize("x", [10, 20, 30, 40, 50])
@pytest.mark.parametrize("policy", ["lru", "tinylfu"])
def test_better_policies_beat_both_published_ones_and_stay_below_the_limit(policy: str, x: int) -> None:
    keys = experiment.requests(x)
    place = experiment.XS.index(x)
    best = max(figures[place] for figures in experiment.PUBLISHED.values())
    limit = experiment.percentage(experiment.clairvoyant(keys), len(keys))
    assert 1.1 * best < percent(policy, keys) < limit


def test_frequency_beats_recency_where_the_hot_keys_stay_hot() -> None:
    keys = experiment.mixed(experiment.requests(40))
    assert percent("tinylfu", keys) > percent("lru", keys) + 5


def test_the_clairvoyant_limit_on_a_load_worked_out_by_hand() -> None:
    local, remote = experiment.NUM_KEYS, 1
    assert experiment.clairvoyant([local, local]) == 2
    assert experiment.clairvoyant([remote, remote, remote]) == 2
    assert experiment.clairvoyant([remote]) == 0
    # 400 keys once each, twice over: 300 stay local, the first round misses 100 that are not local at the start
    round_trip = list(range(601, 1001)) * 2
    assert experiment.clairvoyant(round_trip) == 300 + 300


def test_a_percentage_is_cut_off_not_rounded() -> None:
    assert experiment.percentage(9999, 10_000 * 10) == 9.99
    assert experiment.percentage(14_896, 50_000) == 29.79


def test_the_report_shows_ours_beside_the_published() -> None:
    if native.unavailable_reason() is not None:
        pytest.skip("no native core")
    from emucxl.bench import kv

    report = kv.run(quick=True)
    json.dumps(report.results)
    rows = {row[0].strip(): row[1:] for row in report.rows[:9]}
    for policy in experiment.PUBLISHED:
        assert rows[policy] == rows[f"{policy}, published"]
    results: Any = report.results
    modelled = {
        name: results["published_order"][name]["ns_per_get"]["values"][1] for name in ("leave", "lru")
    }
    assert modelled["lru"] < modelled["leave"], "at x = 10 %, moving the hot keys pays"
