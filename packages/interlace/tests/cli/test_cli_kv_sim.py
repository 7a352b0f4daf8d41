from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch

from support.block_traces import BLOCK_TOKENS, row, rows, write
from tokenweave.curves import AttentionTimes, Curve
from tokenweave.host_costs import LANES
from tokenweave.wave_table import KindTimes, WaveTable

BLOCKS = ("--block-tokens", str(BLOCK_TOKENS))
TIERS = ("--tier", "local:3", "--tier", "cxl@cxl-direct", "--sizes", "2,1MB,unlimited")


@pytest.fixture
def trace(tmp_path: Path) -> str:
    return str(write(tmp_path / "trace.jsonl", rows(5, 40)))


def test_the_table_has_every_policy_at_every_size(invoke: Any, trace: str) -> None:
    result = invoke("kv-sim", trace, *BLOCKS, *TIERS)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("trace     trace.jsonl: 40 requests in ")
    assert lines[2:5] == [
        "tier      local: 3 blocks, 1.6 MB; reads cost nothing",
        "tier      cxl: tried in the sizes below; reads as cxl-direct*",
        "servers*  8 of 10,000 tokens/s",
    ]
    assert [line.count("lru") for line in lines].count(1) == 3
    assert "in cxl" in result.stdout
    assert lines[-1].startswith("* modelled.")


def test_the_json_has_what_was_asked_and_what_came_of_it(invoke: Any, trace: str) -> None:
    result = invoke("kv-sim", trace, *BLOCKS, *TIERS, "--policy", "lru", "--json")
    found = json.loads(result.stdout)
    assert found["trace"]["num_requests"] == 40
    assert found["swept"] == "cxl"
    assert [point["capacity_blocks"] for point in found["points"]] == [[3, 2], [3, 1], [3, None]]
    last = found["points"][-1]
    assert sum(last["hits"]) == found["trace"]["num_asked"] - found["trace"]["num_distinct"]
    assert last["hit_rate"] == sum(last["hits"]) / found["trace"]["num_asked"]
    assert last["mean_ttft_s"] < found["without_cache"]["mean_ttft_s"]
    assert found["modelled"]["block_bytes"] == BLOCK_TOKENS * 131_072


def test_the_chart_has_a_curve_for_each_policy_in_both_halves(
    invoke: Any, trace: str, tmp_path: Path
) -> None:
    chart = tmp_path / "out.svg"
    assert invoke("kv-sim", trace, *BLOCKS, "--sizes", "0,50,5", "--chart", str(chart)).exit_code == 0
    drawn = ElementTree.parse(chart).getroot()
    space = "{http://www.w3.org/2000/svg}"
    looks = [each.get("class", "") for each in drawn.iter(f"{space}polyline")]
    assert sorted(looks) == sorted(
        f"curve by-{each}" for each in ("first", "second", "third") for _ in range(3)
    )
    curves = [each.get("points", "").split() for each in drawn.iter(f"{space}polyline")]
    assert all(len(curve) == 2 for curve in curves)
    assert all(float(left.split(",")[0]) < float(right.split(",")[0]) for left, right in curves)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--chart", "out.svg", "--sizes", "5"), "expected two sizes or more"),
        (("--chart", "out.svg", "--tier", "local:5"), "expected two sizes or more"),
        (("--chart", "nowhere/out.svg"), "the chart nowhere/out.svg cannot be written"),
        (("--policy", "fifo"), "got the policy 'fifo'"),
        (("--sizes", "5,many"), "got the size 'many'"),
        (("--prefill-rate", "nan"), "got prefill_tokens_per_s=nan"),
        (("--prefill-rate", "5", "--tuned", "smollm2"), "expected one of them"),
        (("--block-tokens", "512"), " tokens; expected "),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_an_error_in_one_line(
    invoke: Any, trace: str, arguments: tuple[str, ...], says: str
) -> None:
    result = invoke("kv-sim", trace, *BLOCKS, *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert says in result.stderr


def test_requests_out_of_order_are_an_error_that_names_the_line(invoke: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "trace.jsonl", [row(5, [0]), row(4, [0])])
    result = invoke("kv-sim", str(path), *BLOCKS)
    assert result.exit_code == 1
    assert "line 2: got timestamp 4 after 5" in result.stderr


TUNED = ("--tp", "2", "--dtype", "float32", "--policy", "lru", "--sizes", "unlimited")


def test_servers_of_a_wave_table_take_what_it_says(
    invoke: Any, trace: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each stage of this table takes a second."""
    monkeypatch.setenv("INTERLACE_CACHE", str(tmp_path))
    arguments = ("kv-sim", trace, *BLOCKS, *TUNED, "--tuned", str(tiny_model))
    missing = invoke(*arguments)
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert f"run `interlace tune {tiny_model} --tp 2 --dtype float32`" in missing.stderr.replace("\n", " ")
    _keep_table(tiny_model, 2)
    found = json.loads(invoke(*arguments, "--servers", "100", "--json").stdout)
    assert found["modelled"]["prefill_tokens_per_s"] is None
    assert found["modelled"]["wave_table"]["tp"] == 2
    assert found["modelled"]["block_bytes"] == BLOCK_TOKENS * 2 * 2 * 4 * 16 * 4  # 3 heads, one on both ranks
    steps_s = 2 * 3 + 2  # projections, attention and MLP of two layers; embedding and logits
    assert found["points"][0]["p50_ttft_s"] == pytest.approx(steps_s, rel=1e-3)
    shown = invoke(*arguments).stdout
    assert f"servers*  8 by this machine's wave table: {tiny_model}, 2 ranks, float32, " in shown


def _keep_table(model: Path, tp: int) -> None:
    """Leaves what `interlace tune` would, where it is looked for."""
    from interlace.engine.config import EngineConfig
    from interlace.engine.ranks.connect import kernels_for
    from interlace.engine.weaving.this_machine import table_directory, table_key
    from interlace.models.sources import load_model

    kernels = kernels_for(EngineConfig("model", tp=tp), tp)
    key = table_key(load_model(str(model)).config, tp, kernels, torch.float32)
    second, none = Curve((1, 4096), (1.0, 1.0)), Curve((1,), (0.0,))
    kinds = (KindTimes(AttentionTimes((1,), (1.0,), (0.0,)), second),)
    WaveTable(key, second, kinds, second, second, none, LANES).save(table_directory())
