from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from interlace.cache.block_trace import BlockTrace
from interlace.cache.policies import Lru
from interlace.cache.sample import sampled
from interlace.cache.scaled_trace import ScaledTrace
from interlace.errors import BlockTraceError
from support.block_traces import trace_of

TURNS = trace_of([0, 1], [0, 1, 2], [3], [0, 1, 2, 4, 5])


def with_outputs(trace: BlockTrace, output_tokens: int = 8) -> BlockTrace:
    return replace(trace, output_tokens=[output_tokens] * trace.num_requests)


def scaled(
    trace: BlockTrace = TURNS, block_tokens: int = 32, room: int = 1000, most: int = 64
) -> ScaledTrace:
    return ScaledTrace.of(with_outputs(trace), block_tokens, room, most)


def test_prompts_are_alike_as_far_as_their_blocks_are() -> None:
    found = scaled()
    prompts = [found.prompt(request, 1000) for request in range(4)]
    assert [len(prompt) for prompt in prompts] == [65, 97, 33, 161]
    assert prompts[1][:64] == prompts[0][:64]
    assert prompts[3][:96] == prompts[1][:96]
    assert (
        len({tuple(prompt[at : at + 16]) for prompt in prompts for at in range(0, len(prompt) - 1, 16)}) == 12
    )
    assert all(256 <= token < 1000 for prompt in prompts for token in prompt)
    assert prompts == [scaled().prompt(request, 1000) for request in range(4)]


@pytest.mark.parametrize("vocab_size", [2, 257])
def test_a_small_vocabulary_is_enough(vocab_size: int) -> None:
    assert set(scaled().prompt(3, vocab_size)) <= set(range(vocab_size // 2, vocab_size))


def test_a_block_is_as_many_of_the_engine_as_its_tokens_fill() -> None:
    found = scaled().in_engine_blocks
    assert found.blocks == [[0, 1, 2, 3], [0, 1, 2, 3, 4, 5], [6, 7], [0, 1, 2, 3, 4, 5, 8, 9, 10, 11]]
    assert found.prompt_tokens == [65, 97, 33, 161]


def test_the_rate_that_is_allowed_is_that_of_the_trace() -> None:
    cache = Lru(TURNS, [None])
    hits = sum(sum(cache.serve(blocks)) for blocks in TURNS.blocks)
    assert scaled().lru_hit_rate(None) == hits / len(TURNS.asked) == 5 / 11
    assert scaled().lru_hit_rate(4) == (4 + 2) / 22


def test_prompts_are_cut_to_the_room_and_outputs_scaled() -> None:
    found = scaled(room=32 * 3 + 1 + 64)
    assert [len(blocks) for blocks in found.blocks] == [2, 3, 1, 3]
    assert found.num_cut == 1
    assert list(found.output_tokens) == [64, 64, 64, 64]  # 8 times as long, as blocks are
    assert list(scaled(most=5).output_tokens) == [5, 5, 5, 5]
    assert list(ScaledTrace.of(with_outputs(TURNS, 0), 16, 1000, 5).output_tokens) == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("block_tokens", "room", "says"),
    [
        (8, 1000, "got 8 tokens per block; expected a multiple of 16"),
        (24, 1000, "got 24"),
        (64, 128, "room for"),
    ],
)
def test_what_cannot_be_scaled_so_is_refused(block_tokens: int, room: int, says: str) -> None:
    with pytest.raises(BlockTraceError, match=says):
        scaled(TURNS, block_tokens, room)


def conversations(count: int, turns: int) -> BlockTrace:
    """Turn by turn of all, behind a block that all share."""
    prompts: list[list[int]] = []
    numbers: dict[tuple[int, int], int] = {}
    for turn in range(turns):
        for talk in range(count):
            own = [1 + numbers.setdefault((talk, place), len(numbers)) for place in range(turn + 1)]
            prompts.append([0, *own])
    return with_outputs(trace_of(*prompts))


def test_a_sample_has_whole_conversations_in_their_order() -> None:
    trace = conversations(40, 3)
    found = sampled(trace, 30)
    assert found.num_requests == 30
    assert Counter(len(blocks) for blocks in found.blocks) == {2: 10, 3: 10, 4: 10}
    assert list(found.arrivals_s) == sorted(found.arrivals_s)
    assert found.num_distinct == 1 + 30  # numbered without gaps
    assert ScaledTrace.of(found, 16, 1000, 1).lru_hit_rate(None) == pytest.approx(
        ScaledTrace.of(trace, 16, 1000, 1).lru_hit_rate(None), rel=0.02
    )


def test_a_sample_of_all_is_the_trace_itself() -> None:
    assert sampled(TURNS, 4) is TURNS


def test_requests_without_blocks_of_their_own_are_drawn_one_by_one() -> None:
    trace = with_outputs(trace_of(*([0] for _ in range(30))))
    assert sampled(trace, 10).num_requests == 10
