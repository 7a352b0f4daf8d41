from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.engine_fakes import FakeRanks
from tokenweave.execute import run_sequential
from tokenweave.plan import Moves, Op, plan_forward
from tokenweave.trace import Recorder, Trace

FIGURES = {
    "total_s",
    "compute_s",
    "communication_s",
    "hidden_s",
    "exposed_s",
    "hidden_fraction",
    "blocked_s",
    "memory_s",
    "memory_hidden_s",
    "memory_exposed_s",
    "memory_hidden_fraction",
    "memory_blocked_s",
    "modelled_total_s",
    "modelled_blocked_s",
    "undisturbed_total_s",
}


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Two ranks; five layers; a woven prompt, and tokens after it."""
    recorder = Recorder()
    for plan in (plan_forward(5, 40, 20), *[plan_forward(5, 1)] * 3):
        run_sequential(plan, dict.fromkeys(Op, lambda step: None), recorder.observe(plan))
    path = tmp_path / "out.json"
    Trace.join(recorder, [recorder.to_bytes()] * 2).write(path)
    return path


def test_the_summary_shows_ranks_kinds_of_passes_and_layers(invoke: Any, trace: Path) -> None:
    result = invoke("trace", "summary", str(trace))
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "2 ranks, 4 passes; one host: one clock"
    assert "* is modelled" in lines[1]
    firsts = [line.split()[0] for line in lines[2:] if line.strip() and not line.startswith("─")]
    kinds = firsts[5:7]
    assert sorted(kinds) == ["1", "3"]
    layers = ["layer", "embedding", "layer", "each", "layer", "output", "all"]
    assert firsts == ["rank", "0", "1", "mean", "passes", *kinds, *layers]
    assert "each of 1-3" in result.stdout


def test_all_folds_no_layer(invoke: Any, trace: Path) -> None:
    shown = invoke("trace", "summary", str(trace), "--all").stdout
    assert all(f"layer {layer} " in shown for layer in range(5))


def test_json_has_every_figure(invoke: Any, trace: Path) -> None:
    found = json.loads(invoke("trace", "summary", str(trace), "--json").stdout)
    assert found["num_passes"] == 4
    assert [each["rank"] for each in found["ranks"]] == [0, 1]
    assert {(each["num_tokens"], each["split"], each["num_passes"]) for each in found["kinds"]} == {
        (40, 20, 1),
        (1, None, 3),
    }
    assert [each["layer"] for each in found["layers"]] == ["embedding", *"01234", "output"]
    assert found["mean"].keys() == FIGURES
    assert found["ranks"][0].keys() == FIGURES | {"rank"}
    assert found["mean"]["hidden_s"] == 0, "run in list order, nothing is hidden"


def test_what_the_memory_lane_did_has_a_table_of_its_own(invoke: Any, trace: Path, tmp_path: Path) -> None:
    assert "memory lane" not in invoke("trace", "summary", str(trace)).stdout
    recorder = Recorder()
    plan = plan_forward(2, 40, 20, Moves(evicts=True, fetches=True, stores=True))
    run_sequential(plan, dict.fromkeys(Op, lambda step: None), recorder.observe(plan))
    path = tmp_path / "moved.json"
    Trace.join(recorder, [recorder.to_bytes()] * 2).write(path)
    shown = invoke("trace", "summary", str(path)).stdout
    head, _, *rows = shown.partition("\nmemory lane")[2].splitlines()
    assert head.split() == ["busy", "hidden", "exposed", "hidden", "share", "blocked", "by", "it"]
    assert [row.split("  ")[0] for row in rows] == ["rank 0", "rank 1", "mean", "evict", "fetch", "store"]
    found = json.loads(invoke("trace", "summary", str(path), "--json").stdout)
    assert [each["operation"] for each in found["moves"]] == ["evict", "fetch", "store"]
    assert sum(each["memory_s"] for each in found["moves"]) == pytest.approx(found["mean"]["memory_s"])
    assert found["mean"]["memory_blocked_s"] > 0, "run in list order, the compute lane waits for each"


def test_a_file_that_is_no_trace_is_an_error_of_one_line(invoke: Any, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text("{}")
    for path in (other, tmp_path / "none.json", tmp_path):
        result = invoke("trace", "summary", str(path))
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("error: ")
        assert len(result.stderr.splitlines()) == 1


def test_generate_writes_a_trace_beside_its_answer(
    invoke: Any, fake_model: FakeRanks, tmp_path: Path
) -> None:
    plain = invoke("generate", "--temperature", "0", "--max-tokens", "5", "Hi")
    traced = invoke(
        "generate", "--temperature", "0", "--max-tokens", "5", "--trace", str(tmp_path / "t.json"), "Hi"
    )
    assert (traced.exit_code, traced.stdout) == (0, plain.stdout)
    assert Trace.read(tmp_path / "t.json").num_dropped == 0


def test_a_trace_that_cannot_be_written_is_refused_before_a_model_is_opened(
    invoke: Any, tmp_path: Path
) -> None:
    result = invoke("generate", "--model", "none", "--trace", str(tmp_path / "none" / "t.json"), "Hi")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "cannot write the trace" in result.stderr


def test_the_page_shows_the_tables_that_are_printed(invoke: Any, trace: Path) -> None:
    page = (Path(__file__).parents[4] / "docs" / "weaving" / "traces.md").read_text()
    shown = (
        page.partition("<!-- from: interlace trace summary -->")[2]
        .partition("```text\n")[2]
        .partition("```")[0]
    )
    printed = invoke("trace", "summary", str(trace)).stdout
    heads = ("rank ", "passes ", "layer  ", "milliseconds")
    for head in heads:
        (ours,) = [line.split() for line in shown.splitlines() if line.startswith(head)]
        (theirs,) = [line.split() for line in printed.splitlines() if line.startswith(head)]
        assert ours == theirs
