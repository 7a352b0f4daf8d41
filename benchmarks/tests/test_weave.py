from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from benchmarks.weave import blocked, end_to_end
from benchmarks.weave.blocked import AUTO, FUSED, NOTHING, UNFUSED, WOVEN, WeaveFigures, WeaveOptions
from emucxl.bench.harness import Samples, record
from interlace.cli.bench.workload import ServeWorkload
from interlace.errors import BenchError
from tokenweave.errors import CommunicatorError


def samples(*values: float) -> Samples:
    return Samples(values)


def found(
    link: str | None = "1GB/s,5us", woven_blocked: float = 0.01, auto_wall: float = 1.0
) -> WeaveFigures:
    systems = (NOTHING, UNFUSED, FUSED, WOVEN, AUTO)
    wall = dict.fromkeys(systems, samples(1.0)) | {AUTO: samples(auto_wall), WOVEN: samples(0.8)}
    blocked = dict.fromkeys(systems, samples(0.4)) | {WOVEN: samples(woven_blocked)}
    return WeaveFigures(256, link, 120, wall, blocked, dict.fromkeys(systems, samples(1.0)))


def test_hidden_is_the_share_of_the_fused_operation_that_no_longer_blocks() -> None:
    assert found(woven_blocked=0.1).hidden.median == pytest.approx(0.75)
    assert found().communication_share == pytest.approx(0.4)


def test_targets_name_their_worst_case() -> None:
    met = {name: is_met for name, is_met, _ in blocked.targets([found()])}
    assert list(met.values()) == [True, True, True]
    (hidden, _, slowdown) = blocked.targets([found(), found("2GB/s,5us", woven_blocked=0.2, auto_wall=1.1)])
    assert hidden[1:] == (False, "least 50.0%, 256 tokens over 2GB/s,5us")
    assert slowdown[1:] == (False, "worst 1.100, 256 tokens over 2GB/s,5us")


def test_memory_has_no_target_of_its_own() -> None:
    assert len(list(blocked.targets([found(link=None, woven_blocked=0.4)]))) == 2


def test_a_report_says_what_is_modelled() -> None:
    report = blocked.report(WeaveOptions(), [found(), found(link=None)])
    assert "link (modelled)" in report.columns
    cases = json.loads(json.dumps(record(report, quick=True)))["results"]["cases"]
    assert [case["link_kind"] for case in cases] == ["modelled", None]
    assert all(len(row) == len(report.columns) for row in report.rows)


def test_options_are_read_from_the_command_line() -> None:
    options = WeaveOptions.read("wide", "auto", "64,128", "none;250MB/s,5us", 3, is_quick=False)
    assert options.tokens == (64, 128)
    assert options.links == (None, "0.25GB/s,5us")
    assert WeaveOptions.read("wide", "auto", "", "", 3, is_quick=False).links == blocked.LINKS
    assert WeaveOptions.read("wide", "auto", "", "", 3, is_quick=True).tokens == blocked.QUICK_TOKENS


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(BenchError, match="expected numbers with commas"):
        WeaveOptions.read("wide", "auto", "64;128", "", 3, is_quick=False)
    with pytest.raises(CommunicatorError, match="expected a bandwidth"):
        WeaveOptions.read("wide", "auto", "", "fast", 3, is_quick=False)
    with pytest.raises(BenchError, match="from 2 tokens on"):
        WeaveOptions(tokens=(1,))


def test_end_to_end_reports_ratios_by_pairs() -> None:
    seconds = {mode: samples(*values) for mode, values in zip(
        end_to_end.MODES, ((1.0, 2.0, 4.0), (0.5, 1.0, 2.0), (2.0, 4.0, 8.0)), strict=True
    )}  # fmt: skip
    each = end_to_end.EndToEndFigures(end_to_end.THROUGHPUT, seconds)
    assert each.ratio(end_to_end.ON).median == 0.5
    report = end_to_end.report(end_to_end.EndToEndOptions(), [each], "a link (modelled)")
    assert "modelled" in report.title
    json.dumps(record(report, quick=True))


def test_on_gpus_the_ranks_are_threads_and_the_record_says_so() -> None:
    options = end_to_end.EndToEndOptions(device="cuda")
    each = end_to_end.EndToEndFigures(
        end_to_end.THROUGHPUT, {mode: samples(1.0) for mode in end_to_end.MODES}
    )
    with end_to_end._joined(options) as joined:
        report = end_to_end.report(options, [each], joined.text)
    assert report.name == "weave-cuda"
    assert ("two ranks as threads of one process, on one GPU" in report.title) == (
        torch.cuda.device_count() < 2
    )
    with pytest.raises(BenchError, match="got device='cuda' between hosts"):
        end_to_end.EndToEndOptions(device="cuda", between_hosts=True)


class Answers:
    """A worker that gives one token for each prompt."""

    def __init__(self, *tokens: int) -> None:
        self.tokens = tokens

    def ask(self, op: str, prompts: list[list[int]], max_tokens: int) -> dict[str, Any]:
        rows = [[token] * max_tokens for token in self.tokens[: len(prompts)]]
        return {"tokens": rows, "first_s": 1.0, "num_at_first": 1, "total_s": 2.0}

    def resume(self) -> None: ...

    def pause(self) -> None: ...


def test_on_gpus_most_answers_must_begin_alike_and_on_cpus_all_must_be_the_same() -> None:
    workload = ServeWorkload("job", 4, 8, 2)
    workers: Any = {"weave never": Answers(1, 2, 3, 4), "weave always": Answers(1, 2, 3, 9)}
    end_to_end._check(workers, workload, 300, end_to_end.LEAST_SAME["cuda"])
    with pytest.raises(BenchError, match="weave always gives other tokens than weave never"):
        end_to_end._check(workers, workload, 300, end_to_end.LEAST_SAME["cpu"])
    workers["weave always"] = Answers(9, 9, 9, 4)
    with pytest.raises(BenchError, match="nothing was timed"):
        end_to_end._check(workers, workload, 300, end_to_end.LEAST_SAME["cuda"])


@pytest.mark.slow
def test_two_ranks_weave_and_agree() -> None:
    options = WeaveOptions("wide", tokens=(96,), links=(None, "0.25GB/s,5us"), rounds=1)
    (memory, linked) = blocked.measure(options)
    assert memory.num_tokens == linked.num_tokens == 96
    assert linked.blocked[FUSED].median > 17 * 2 * 96 * 1024 / 0.25e9  # seconds that the link alone takes
