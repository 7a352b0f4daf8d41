from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from interlace.cache.block_trace import BlockTrace
from interlace.errors import BlockTraceError
from support.block_traces import BLOCK_TOKENS, row, trace_of, write

GOOD = row(10, [7, 8])


def test_a_file_is_read_with_blocks_numbered_as_they_appear(tmp_path: Path) -> None:
    path = write(tmp_path / "trace.jsonl", [row(0, [90, 5]), row(1500, [90, 7, 6]), row(1500.5, [])])
    trace = BlockTrace.read(path, BLOCK_TOKENS)
    assert trace.blocks == [[0, 1], [0, 2, 3], []]
    assert trace.arrivals_s == [0, 1.5, 1.5005]
    assert trace.prompt_tokens == [7, 11, 1]
    assert (trace.num_requests, trace.num_distinct, trace.asked) == (3, 4, [0, 1, 0, 2, 3])


def test_empty_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(f"\n{json.dumps(GOOD)}\n  \n")
    assert BlockTrace.read(path, BLOCK_TOKENS).num_requests == 1


def test_a_last_block_that_is_not_full_may_be_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "trace.jsonl", [row(0, [1, 2], input_length=11), row(0, [1, 2], input_length=8)])
    assert BlockTrace.read(path, BLOCK_TOKENS).prompt_tokens == [11, 8]


def test_the_next_use_of_a_block_is_a_place_among_those_asked_for() -> None:
    assert trace_of([0, 1], [0, 2], [0, 1]).next_use == [2, 5, 4, -1, -1, -1]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"timestamp": 27, "input_len', "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("\udcff", "it is not JSON"),
        ("[1, 2]", "got list; expected a JSON object"),
        ({"timestamp": 11, "hash_ids": []}, "input_length, output_length missing"),
        ({**GOOD, "timestamp": 9}, "got timestamp 9 after 10; expected requests in the order of arrival"),
        ({**GOOD, "timestamp": -1}, "got timestamp=-1"),
        ({**GOOD, "timestamp": "11"}, "got timestamp='11'"),
        ({**GOOD, "timestamp": True}, "got timestamp=True"),
        ({**GOOD, "timestamp": float("nan")}, "got timestamp=nan"),
        ({**GOOD, "timestamp": 10**400}, "got timestamp=1"),
        ({**GOOD, "input_length": -7}, "got input_length=-7"),
        ({**GOOD, "input_length": 0}, "got input_length=0"),
        ({**GOOD, "input_length": 7.0}, "got input_length=7.0"),
        ({**GOOD, "output_length": -1}, "got output_length=-1"),
        ({**GOOD, "input_length": 13}, "got 2 hash_ids for 13 tokens; expected 4, as a block has 4 tokens"),
        ({**GOOD, "hash_ids": [7, -8]}, "no list of whole numbers"),
        ({**GOOD, "hash_ids": [7, True]}, "no list of whole numbers"),
        ({**GOOD, "hash_ids": "78"}, "no list of whole numbers"),
        ({**GOOD, "hash_ids": [7, 7]}, "got 7 twice in hash_ids"),
    ],
    ids=str,
)
def test_a_line_that_is_wrong_is_named(tmp_path: Path, line: Any, says: str) -> None:
    path = tmp_path / "trace.jsonl"
    text = line if isinstance(line, str) else json.dumps(line)
    path.write_text(f"{json.dumps(GOOD)}\n\n{text}\n", errors="surrogateescape")
    with pytest.raises(BlockTraceError) as caught:
        BlockTrace.read(path, BLOCK_TOKENS)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert says in str(caught.value)


def test_a_file_without_requests_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trace.jsonl").write_text("\n")
    with pytest.raises(BlockTraceError, match="holds no request"):
        BlockTrace.read(tmp_path / "trace.jsonl")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BlockTraceError, match=r"nonesuch\.jsonl cannot be read: No such file"):
        BlockTrace.read(tmp_path / "nonesuch.jsonl")
