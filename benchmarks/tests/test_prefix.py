"""Prompts that begin alike, in rounds; answers are compared before anything is timed."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.serve.prefix import Times, measure, report
from benchmarks.serve.systems import SYSTEMS
from interlace.cli.bench.workload import PrefixShapes
from interlace.errors import BenchError

SHAPES = PrefixShapes(32, 8)
NAMED = {system.name: system for system in SYSTEMS}


class FakeParticipant:
    """Takes a second for a prompt whose beginning is new to it, and a tenth for others."""

    def __init__(self, name: str, forgets_itself: bool = False) -> None:
        self.system = NAMED[name]
        self.asked: list[tuple[int, ...]] = []
        self._forgets_itself = forgets_itself

    def ask(self, op: str, prompts: list[list[int]], max_tokens: int) -> dict[str, Any]:
        (prompt,) = prompts
        is_known = any(each[:32] == tuple(prompt[:32]) for each in self.asked)
        self.asked.append(tuple(prompt))
        token = int(self._forgets_itself and is_known)
        return {"first_s": 0.1 if is_known else 1.0, "tokens": [[token] * max_tokens]}


def test_prompts_of_one_round_begin_alike_and_no_two_are_the_same() -> None:
    prompts = [SHAPES.prompt(beginning, end, 1000) for beginning in range(3) for end in range(4)]
    assert {len(prompt) for prompt in prompts} == {40}
    assert len({tuple(prompt) for prompt in prompts}) == 12
    assert len({tuple(prompt[:32]) for prompt in prompts}) == 3


def test_times_are_of_prompts_that_are_computed_and_of_those_that_are_found() -> None:
    systems = [FakeParticipant("interlace-bf16"), FakeParticipant("vllm-bf16")]
    found = measure(systems, SHAPES, 1000, rounds=2)  # type: ignore[arg-type]
    assert found == {system.system.name: Times([1000.0] * 2, [100.0] * 2) for system in systems}
    assert len(set(systems[0].asked)) == 1 + 2 * 4


def test_another_answer_to_a_prompt_that_was_found_is_an_error_of_ours_alone() -> None:
    with pytest.raises(BenchError, match=r"interlace-bf16 answered .* when it had found the prompt"):
        measure([FakeParticipant("interlace-bf16", forgets_itself=True)], SHAPES, 1000, rounds=1)  # type: ignore[list-item]
    measure([FakeParticipant("vllm-bf16", forgets_itself=True)], SHAPES, 1000, rounds=1)  # type: ignore[list-item]


def test_a_row_has_the_ratio_to_computing_and_to_the_peer() -> None:
    found = {"interlace-bf16": Times([800.0], [40.0]), "vllm-bf16": Times([900.0], [80.0])}
    ours, peer = report("model", found, SHAPES, 2).rows
    assert [cell.split()[0] for cell in ours[1:]] == ["800.0", "40.0", "0.050", "0.50"]
    assert peer[4] == ""
