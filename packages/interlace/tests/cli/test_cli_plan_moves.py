"""`interlace plan show` of a pass that moves blocks between the KV cache and a tier below it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from interlace.cli.plan_moves import PlanMoves
from interlace.cli.timeline import draw
from support.tiny_models import make_model
from tokenweave.plan import Moves, Op, plan_forward
from tokenweave.simulate import Phase, Resource, simulate

TIER = ("--kv-tier", "cxl:8GB@cxl-direct")
ALL = ("--tokens", "70", "--fetch", "160", "--evict", "32", "--store", *TIER)


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("deep") / "deep", "llama", num_hidden_layers=5)


def found_of(invoke: Any, model: Path, *arguments: str) -> Any:
    result = invoke("plan", "show", str(model), *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_every_rank_moves_what_it_has_of_the_blocks(invoke: Any, deep_model: Path) -> None:
    for rank in (0, 1):
        found = found_of(invoke, deep_model, *ALL, "--tp", "2", "--rank", str(rank), "--split", "32")
        plan = plan_forward(5, 70, 32, Moves(evicts=True, fetches=True, stores=True))
        assert [step["operation"] for step in found["steps"]] == [step.name for step in plan.steps]
        block_bytes = 16 * found["ranks"][rank]["kv_bytes_per_token"] // 5
        moved = dict.fromkeys(("evict", "fetch", "store"), 0)
        for step in found["steps"]:
            kind = step["operation"].partition("[")[0]
            if step["lane"] == "memory":
                moved[kind] += step["bytes_moved"]
            else:
                assert step["bytes_moved"] == 0
        assert moved == {
            "evict": 5 * 2 * block_bytes,
            "fetch": 5 * 10 * block_bytes,
            "store": 5 * 4 * block_bytes,
        }
        assert found["totals"]["moved_bytes"] == sum(moved.values())


def test_computed_tokens_attend_to_those_that_are_fetched(invoke: Any, deep_model: Path) -> None:
    def attention_flops(*arguments: str) -> int:
        steps = found_of(invoke, deep_model, *arguments)["steps"]
        (flops,) = (step["flops"] for step in steps if step["operation"] == "attention[0]")
        return int(flops)

    alone, whole = attention_flops("--tokens", "16"), attention_flops("--tokens", "176")
    behind = attention_flops("--tokens", "16", "--fetch", "160", *TIER)
    assert alone < behind < whole
    assert behind + attention_flops("--tokens", "160") == whole


def test_it_says_what_is_hidden_and_what_the_pass_takes_with_and_without(
    invoke: Any, deep_model: Path
) -> None:
    modelled = found_of(invoke, deep_model, *ALL)["modelled"]
    assert modelled["without_moves_s"] <= modelled["pass_s"] + 1e-12
    assert modelled["pass_s"] <= modelled["total_s"]
    assert modelled["pass_s"] < modelled["computed_anew_s"]
    assert [(each["operation"], each["num_blocks"]) for each in modelled["moves"]] == [
        ("evict", 2), ("fetch", 10), ("store", 4),
    ]  # fmt: skip
    assert sum(each["busy_s"] for each in modelled["moves"]) == pytest.approx(modelled["memory_s"])
    hidden_s = sum(each["hidden_s"] for each in modelled["moves"])
    assert modelled["memory_hidden_fraction"] == pytest.approx(hidden_s / modelled["memory_s"])
    shown = invoke("plan", "show", str(deep_model), *ALL).stdout
    lines = shown.partition("timeline, modelled: ")[2].splitlines()
    assert "read at 17.8 GB/s, 250 ns" in lines[1]
    for line, word in ((lines[3], "memory lane: evict "), (lines[4], "the pass: ")):
        assert line.startswith(word)
    assert "; without moving anything " in lines[4]
    assert "; with the fetched tokens computed instead " in lines[4]
    assert sum(line.startswith("memory ") for line in lines[5:]) == 2, "drawn in the first and the last layer"
    assert max(map(len, lines)) <= 120


def test_a_slow_tier_makes_the_pass_wait_and_little_is_hidden(invoke: Any, deep_model: Path) -> None:
    slow, fast = (
        found_of(invoke, deep_model, "--tokens", "16", "--fetch", "160", "--kv-tier", f"cxl:8GB@{timing}")
        for timing in ("0.001GB/s,5us", "100GB/s,1us")
    )
    found = [each["modelled"] for each in (slow, fast)]
    assert found[0]["pass_s"] > 10 * found[1]["pass_s"]
    assert found[0]["memory_hidden_fraction"] < found[1]["memory_hidden_fraction"]


def test_stores_end_behind_the_pass(invoke: Any, deep_model: Path) -> None:
    arguments = ("--tokens", "64", "--store", "--kv-tier", "cxl:8GB@0.001GB/s,5us")
    modelled = found_of(invoke, deep_model, *arguments)["modelled"]
    assert modelled["pass_s"] == pytest.approx(modelled["without_moves_s"])
    assert modelled["total_s"] > modelled["pass_s"]
    assert modelled["computed_anew_s"] is None
    assert (
        "after the pass, which does not wait for them"
        in invoke("plan", "show", str(deep_model), *arguments).stdout
    )


def test_a_tier_without_a_timing_is_said_to_be_assumed(invoke: Any, deep_model: Path) -> None:
    shown = invoke("plan", "show", str(deep_model), "--fetch", "16", "--kv-tier", "cxl:8GB").stdout
    assert "tier cxl:8GB: assumed as fast as a core copies, 8 GB/s" in shown


def test_stores_of_the_middle_layers_are_folded_apart_and_hide_no_other_step(
    invoke: Any, deep_model: Path
) -> None:
    shown = invoke("plan", "show", str(deep_model), *ALL).stdout
    assert "3 more layers, 18 steps" in shown
    assert "3 more layers, 3 steps" in shown
    for name in ("attention[4]", "logits", "fetch[4]", "store[0]", "store[4]", "gather"):
        assert f" {name} " in shown
    assert " store[2] " not in shown


def test_layers_begin_where_they_are_computed_however_early_they_are_fetched() -> None:
    plan = plan_forward(3, 8, None, Moves(fetches=True))
    seconds = {Op.FETCH: 0.1}
    cost = lambda step: (Phase(Resource.CORE, seconds.get(step.op, 1.0)),)  # noqa: E731
    timeline = simulate(plan, cost, shared_core=False)
    drawn = "\n".join(draw(timeline, every_layer=True))
    (begins,) = {each.start_s for each in timeline.intervals if each.step.name == "attention[1]"}
    assert f"layer 1, from {1e3 * begins:,.2f} ms" in drawn


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fetch", "16"), "got --fetch, --evict or --store and no tier"),
        (TIER, "nothing to move"),
        (("--fetch", "100", *TIER), "got --fetch 100: expected a multiple of 16"),
        (("--evict", "-16", *TIER), "got --evict -16: expected a multiple of 16"),
        (("--store", "--tokens", "15", *TIER), "15 tokens fill no block of 16"),
        (("--fetch", "16", "--kv-tier", "cxl:1KB"), "expected a larger one"),
        (("--fetch", "16", "--kv-tier", "cxl"), "expected NAME:SIZE"),
        (("--fetch", "16", "--device", "cuda", *TIER), "device='cuda'"),
    ],
)
def test_what_cannot_be_moved_is_an_error_of_one_line(
    invoke: Any, deep_model: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = invoke("plan", "show", str(deep_model), *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("timing", "expected_s"), [("@2GB/s,1us", (500e-6 + 1e-6, 1000e-6 + 1e-6)), ("", (125e-6, 250e-6))]
)
def test_a_layers_step_takes_what_the_tier_or_the_core_takes(
    timing: str, expected_s: tuple[float, float]
) -> None:
    moves = PlanMoves.of(f"cxl:1GB{timing}", fetch=16, evict=32, num_tokens=8, stores=False)
    priced = moves.priced(block_bytes=1e6)
    found_s = tuple(sum(phase.seconds for phase in priced[op]) for op in (Op.FETCH, Op.EVICT))
    assert found_s == pytest.approx(expected_s)
    assert Op.STORE not in priced
