"""The wave table: what it interpolates, and how it is kept."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from support.wave_tables import curves, gpu_table, key_of, linear_table, mixed_table, tables
from tokenweave.curves import AttentionTimes, Curve
from tokenweave.errors import TuneError
from tokenweave.geometry import pairs_seen
from tokenweave.host_costs import HostCosts
from tokenweave.wave_table import FORMAT, LayerKind, MlpShape, WaveTable, load_table


@given(curve=curves(), num_tokens=st.integers(0, 10_000))
def test_a_curve_is_exact_where_it_was_measured_and_within_its_neighbours_between(
    curve: Curve, num_tokens: int
) -> None:
    for tokens, seconds in zip(curve.tokens, curve.seconds, strict=True):
        assert curve(tokens) == seconds
    around = sorted(zip(curve.tokens, curve.seconds, strict=True), key=lambda at: abs(at[0] - num_tokens))
    if curve.tokens[0] <= num_tokens <= curve.tokens[-1]:
        before = max(at for at in around if at[0] <= num_tokens)[1]
        after = min(at for at in around if at[0] >= num_tokens)[1]
        assert min(before, after) - 1e-12 <= curve(num_tokens) <= max(before, after) + 1e-12


@given(steps=st.lists(st.floats(0, 1), min_size=1, max_size=8), tokens=st.lists(st.integers(1, 9000)))
def test_monotone_points_give_a_monotone_curve(steps: list[float], tokens: list[int]) -> None:
    curve = Curve(tuple(range(10, 10 * len(steps) + 1, 10)), tuple(np.cumsum(steps).tolist()))
    values = [curve(count) for count in sorted(tokens)]
    assert all(a <= b + 1e-12 for a, b in pairwise(values))


def test_beyond_the_last_point_time_grows_in_proportion_and_no_tokens_cost_nothing() -> None:
    curve = Curve((10, 100), (1.0, 4.0))
    assert curve(200) == 8.0
    assert curve(0) == 0.0
    assert curve(3) == 1.0


@pytest.mark.parametrize(
    ("tokens", "seconds"), [((), ()), ((2, 1), (1.0, 1.0)), ((1,), (float("nan"),)), ((0,), (1.0,))]
)
def test_a_curve_that_makes_no_sense_is_refused(tokens: tuple[int, ...], seconds: tuple[float, ...]) -> None:
    with pytest.raises(TuneError, match="expected"):
        Curve(tokens, seconds)


@given(num_new=st.integers(1, 60), before=st.integers(0, 60), window=st.integers(0, 80))
def test_pairs_are_counted_as_one_counts_them(num_new: int, before: int, window: int) -> None:
    expected = sum(min(before + i + 1, window or 10_000) for i in range(num_new))
    new, keys = np.array([float(num_new)]), np.array([float(before + num_new)])
    assert pairs_seen(new, keys, window)[0] == expected


def test_attention_goes_through_both_measured_points() -> None:
    times = AttentionTimes.fit([(4, (10.0, 3.0), (20.0, 5.0)), (64, (100.0, 1.0), (200.0, 3.0))])
    assert times(np.array([4.0]), np.array([10.0])) == pytest.approx(3.0)
    assert times(np.array([4.0, 4.0]), np.array([20.0, 10.0])) == pytest.approx(8.0)
    assert times(np.array([64.0]), np.array([200.0])) == pytest.approx(3.0)  # through the floor's 0


def test_a_window_of_one_key_has_a_time_and_no_slope() -> None:
    times = AttentionTimes.fit([(4, (4.0, 3.0), (4.0, 2.5))])
    assert (times.floor_s, times.pair_s) == ((2.5,), (0.0,))


def test_noise_makes_no_attention_time_negative() -> None:
    times = AttentionTimes.fit([(4, (10.0, 3.0), (20.0, 2.0))])
    assert times.pair_s == (0.0,)
    assert times.floor_s == (2.0,)


@given(table=tables())
@example(table=mixed_table())
@example(table=gpu_table({2: 3.0, 8: 1.0}, {2: 1.1, 8: 1.5}))
def test_a_table_survives_its_json(table: WaveTable) -> None:
    assert WaveTable.from_json(json.loads(json.dumps(table.to_json()))) == table


def test_a_table_is_found_by_its_key_and_by_no_other(tmp_path: Path) -> None:
    table = linear_table()
    path = table.save(tmp_path / "tune")
    assert load_table(tmp_path / "tune", table.key) == table
    for change in (
        {"threads": 2}, {"machine": "another"}, {"library": "2"}, {"dtype": "float32"}, {"kernels": "native amx"}
    ):  # fmt: skip
        assert load_table(tmp_path / "tune", replace(table.key, **change)) is None
    assert load_table(tmp_path / "elsewhere", table.key) is None
    assert [found.name for found in path.parent.iterdir()] == [path.name]  # nothing is left beside it


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        json.dumps({"format": FORMAT}),
        json.dumps({**linear_table().to_json(), "format": FORMAT + 1}),
        json.dumps({**linear_table().to_json(), "embed": {"tokens": [1], "seconds": ["fast"]}}),
        json.dumps({**linear_table().to_json(), "embed": {"tokens": [2, 1], "seconds": [1, 1]}}),
        json.dumps({**linear_table().to_json(), "kinds": []}),
        json.dumps(replace(linear_table(), key=key_of(threads=9)).to_json()),
    ],
)
def test_a_damaged_stale_or_foreign_file_is_ignored_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    table = linear_table()
    table.save(tmp_path).write_text(content)
    with caplog.at_level(logging.WARNING, "tokenweave"):
        assert load_table(tmp_path, table.key) is None
    (record,) = caplog.records
    assert "ignoring the wave table" in record.getMessage()
    assert "interlace tune" in record.getMessage()


def of_format_2(table: WaveTable) -> dict[str, Any]:
    """As it was written when all layers of a model were taken to be alike."""
    found = json.loads(json.dumps(table.to_json()))
    (times,) = found.pop("kinds")
    found["key"] |= {"num_experts": 0, "experts_per_token": 0, "sliding_window": 0}
    del found["key"]["kinds"]
    return {**found, **times, "format": 2}


def test_a_table_of_an_older_format_is_told_and_measured_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its name is another, as its key was."""
    key, old = linear_table().key, of_format_2(linear_table())
    (tmp_path / f"{key.file_prefix}0123456789abcdef.json").write_text(json.dumps(old))
    assert load_table(tmp_path, replace(key, machine="another")) is None
    assert not caplog.records  # nobody promised it one
    assert load_table(tmp_path, key) is None
    (record,) = caplog.records
    assert "has format 2, expected 4; `interlace tune` measures it again" in record.getMessage()
    linear_table().save(tmp_path)
    assert load_table(tmp_path, key) == linear_table()
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kernels": "native amx"}, "it was measured with native avx2 kernels (1), these are native amx (1)"),
        (
            {"library": "1 ab12"},
            "it was measured with native avx2 kernels (1), these are native avx2 (1 ab12)",
        ),
        ({"kernels": "native avx2, int8 weights"}, None),
        ({"kernels": "reference 2.13"}, None),
        ({"kernels": "native amx", "threads": 2}, None),
        ({"kernels": "native amx", "machine": "another"}, None),
        ({"kernels": "native amx", "kinds": (LayerKind(MlpShape((800, 736))),)}, None),
    ],
)
def test_a_table_of_another_instruction_set_or_build_is_told_and_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, Any], reason: str | None
) -> None:
    """One of another job is none of this job's business."""
    table = linear_table()
    table.save(tmp_path)
    assert load_table(tmp_path, replace(table.key, **change)) is None
    told = [record.getMessage() for record in caplog.records]
    if reason is None:
        assert not told
    else:
        (message,) = told
        assert f"{reason}; `interlace tune` measures it again" in message


def test_a_table_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = linear_table()
    table.save(tmp_path)
    monkeypatch.setattr("json.dump", lambda *_, **__: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        replace(table, host=HostCosts(switch_s=1.0)).save(tmp_path)
    assert load_table(tmp_path, table.key) == table
    assert len(list(tmp_path.iterdir())) == 1
