"""Tables and files of a made-up run."""

import io
import json
from pathlib import Path
from typing import cast

import pytest
from rich.console import Console
from typer.testing import CliRunner

from benchmarks.command import app
from benchmarks.harness.worker import Worker
from benchmarks.serve import machine_report, record, report
from benchmarks.serve.correctness import Agreement
from benchmarks.serve.drive import ServeOptions, ServeRun
from benchmarks.serve.floor import floor_of
from benchmarks.serve.limits import Limits, Shapes
from benchmarks.serve.participant import Participant
from benchmarks.serve.systems import SYSTEMS
from benchmarks.serve.targets import best_peer, targets
from emucxl.bench import machine
from interlace.cli.bench.workload import FULL
from interlace.errors import BenchError


def participant(name: str, *rates: float) -> Participant:
    (system,) = [system for system in SYSTEMS if system.name == name]
    samples = {workload.name: list(rates) for workload in FULL}
    loaded = {"versions": {name: "1.0"}}
    return Participant(system, cast(Worker, None), loaded, 3.0, samples, Agreement(4, 3, 20.0), 500_000_000)


@pytest.fixture
def run() -> ServeRun:
    participants = [
        participant("interlace-bf16", 130, 150, 260),
        participant("interlace-bf16-tp2", 130, 135, 260),
    ]
    participants += [participant("vllm-bf16", 100, 100, 200), participant("hf-f32", 10, 10, 10)]
    limits = Limits(Shapes(((8, 8, 1),), (16, 8), 4), threads=2)
    limits.read_bytes_per_s, limits.copy_bytes_per_s = [2e10], [3e10]
    limits.gemm_s = {("torch", "bfloat16", 512): [0.5]}
    limits.peak_flops_per_s = {"fma": [1e3], "bf16": [4e3]}
    phases = {"prefill": {"wall_s": 2.0, "num_passes": 1, "steps_s": {"mlp": 1.0}}}
    return ServeRun(
        ServeOptions(rounds=3, workloads=FULL),
        {"name": "tiny"},
        participants,
        {"llamacpp": "no such file"},
        limits,
        foreign_cores=[0.0, 0.3],
        cold_start_s={1: [3.0, 4.0, 7.0], 2: [6.0, 6.0, 6.0]},
        profiles={"interlace-bf16": {"prefill 512": phases}},
    )


def text_of(run: ServeRun) -> str:
    console = Console(file=io.StringIO(), width=200)
    for table in report.tables(run):
        console.print(table)
    return cast(io.StringIO, console.file).getvalue()


def test_the_best_peer_is_the_fastest_by_median(run: ServeRun) -> None:
    peer = best_peer(run, FULL[0])
    assert peer is not None
    assert peer.system.name == "vllm-bf16"


def test_targets_are_medians_of_paired_ratios(run: ServeRun) -> None:
    found = {target.name: target for target in targets(run)}
    prefill = found["prefill 512: interlace-bf16 / vllm-bf16"]
    assert prefill.got.median == pytest.approx(1.3)
    assert prefill.is_met
    assert not found["decode batch 1: interlace-bf16-tp2 / interlace-bf16"].got.median < 0.95
    assert found["cold start to first token, 1 rank (s)"].is_met
    assert not found["cold start to first token, 2 ranks (s)"].is_met


def test_weights_as_stored_are_compared_with_llama_cpps(run: ServeRun) -> None:
    assert not any("stored" in target.name for target in targets(run))
    run.participants += [
        participant("interlace-stored", 130, 150, 260),
        participant("llamacpp", 60, 100, 200),
    ]
    found = {target.name: target for target in targets(run)}
    assert not found["prefill 512: interlace-stored / llamacpp"].is_met  # 1.5 of 2
    assert found["decode batch 8: interlace-stored / llamacpp"].is_met


def test_weights_as_stored_have_a_limit_where_memory_bounds_them(run: ServeRun) -> None:
    run.participants = [participant("interlace-stored", 130, 150, 260)]
    run.model["stored_bytes"] = 1_000_000
    rows = [line for line in text_of(run).splitlines() if "bytes from memory" in line]
    (decode,) = [workload for workload in FULL if workload.name == "decode batch 1"]
    context = decode.prompt_tokens + decode.output_tokens // 2
    limit = 2e10 / (1_000_000 + 4 * 4 * context)  # 4 keys and values of a token, 4 bytes each
    assert f"{limit:,.0f}" in next(row for row in rows if "decode batch 1 " in row)
    assert len(rows) == sum(workload.measure == "decode" for workload in FULL)


def test_a_quick_run_has_no_targets(run: ServeRun) -> None:
    run.options = ServeOptions(is_quick=True, workloads=FULL)
    assert targets(run) == []


def test_tables_show_speeds_ratios_limits_and_what_was_left_out(run: ServeRun) -> None:
    text = text_of(run)
    assert "150 (130-260)" in text
    assert "1.30 (1.30-1.50)" in text
    assert "left out: no such file" in text
    assert "3 of 4 prompts" in text
    assert "GEMM alone" in text
    assert "other work meanwhile: up to 0.3 cores" in text
    assert "50.0%" in text  # of the profile: half the wall time in the MLP, the other half the engine's


def test_interlace_alone_has_no_ratios(run: ServeRun) -> None:
    run.participants = run.participants[:1]
    assert "best peer" not in text_of(run)


def test_the_record_holds_every_sample_and_is_json(run: ServeRun) -> None:
    read = json.loads(json.dumps(record.to_json(run)))
    assert read["systems"][0]["samples"]["prefill 512"] == [130, 150, 260]
    summary = {"median": 150, "low": 130, "high": 260, "num_samples": 3}
    assert read["systems"][0]["summary"]["prefill 512"] == summary
    assert read["machine"]["cores"] >= 1
    assert read["left_out"] == {"llamacpp": "no such file"}


def test_the_machine_report_compares_within_a_format_and_with_the_floor(run: ServeRun) -> None:
    run.participants.append(participant("llamacpp", 110, 120, 130))
    found = {row[:2]: row[2:] for row in machine_report.rows(json.loads(json.dumps(record.to_json(run))))}
    assert {label for _, label in found} == {"bf16", "f32", "as stored"}
    assert len(found) == 3 * len(FULL)
    assert found[("prefill 512", "as stored")] == ("not run", "llamacpp", "120", "", "", "")
    floor = floor_of(run.limits, FULL[0], "bfloat16", None) if run.limits else None
    assert floor is not None
    expected = (
        "150",
        "vllm-bf16",
        "100",
        "1.30 (1.30-1.50)",
        f"{150 / floor.tokens_per_s:.0%}",
        "arithmetic",
    )
    assert found[("prefill 512", "bf16")] == expected


def test_the_machine_report_of_a_record_names_the_machine_and_the_commit(
    run: ServeRun, tmp_path: Path
) -> None:
    path = tmp_path / "serve.json"
    path.write_text(json.dumps(record.to_json(run)))
    done = CliRunner().invoke(app, ["serve", "--from", str(path)], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    assert machine.cpu_model() in done.stdout
    assert "2 threads; tiny; commit" in done.stdout


@pytest.mark.parametrize("text", ["", "[]", '{"benchmark": "split"}'])
def test_the_machine_report_reads_records_of_serve_only(text: str, tmp_path: Path) -> None:
    path = tmp_path / "any.json"
    path.write_text(text)
    with pytest.raises(BenchError, match=r"any\.json"):
        machine_report.read_record(path)


@pytest.mark.parametrize("damage", [{"machine": None}, {"systems": "none"}, {"threads": []}])
def test_a_damaged_record_is_told_in_one_line(
    run: ServeRun, tmp_path: Path, damage: dict[str, object]
) -> None:
    path = tmp_path / "serve.json"
    path.write_text(json.dumps(record.to_json(run) | damage))
    with pytest.raises(BenchError, match=f"damaged record: got .* for '{next(iter(damage))}'"):
        machine_report.read_record(path)
