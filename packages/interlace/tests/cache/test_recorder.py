from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from interlace.cache.block_trace import BlockTrace
from interlace.cache.recorder import BlockTraceRecorder, check_recordable
from interlace.errors import BlockTraceError


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_blocks_of_one_name_have_one_number_and_lines_are_in_the_order_of_arrival(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    recorder = BlockTraceRecorder(path)
    recorder.begin("first", 40, [b"a", b"b"])
    recorder.begin("second", 50, [b"a", b"c", b"d"])
    recorder.begin("third", 3, [])
    recorder.end("second", 7)
    recorder.end("first", 1_234_567_890)
    recorder.close()
    found = lines_of(path)
    assert [list(line) for line in found] == [["timestamp", "input_length", "output_length", "hash_ids"]] * 3
    assert [line["hash_ids"] for line in found] == [[0, 1], [0, 2, 3], []]
    assert [line["output_length"] for line in found] == [1_234_567_890, 7, 0]
    read = BlockTrace.read(path, block_tokens=16)
    assert (read.prompt_tokens, read.num_distinct) == ([40, 50, 3], 4)


def test_the_file_is_whole_while_it_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("what was there before\n")
    recorder = BlockTraceRecorder(path)
    assert path.read_bytes() == b""
    for number in range(5):
        recorder.begin(str(number), 16, [bytes([number])])
        assert [line["hash_ids"] for line in lines_of(path)] == [[each] for each in range(number + 1)]
    recorder.close()


def test_names_asked_for_longest_ago_are_forgotten_last_block_first(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    recorder = BlockTraceRecorder(path, most_names=3)
    for number, names in enumerate(([b"a", b"b", b"c"], [b"d"], [b"a", b"b", b"c"])):
        recorder.begin(str(number), 48, names)
    recorder.close()
    assert [line["hash_ids"] for line in lines_of(path)] == [[0, 1, 2], [3], [0, 1, 4]]


def test_a_disk_that_is_full_ends_the_recording_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    recorder = BlockTraceRecorder("/dev/full")
    with caplog.at_level(logging.WARNING, "interlace"):
        for number in range(3):
            recorder.begin(str(number), 16, [b"a"])
            recorder.end(str(number), 1)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("recording block traces to /dev/full has ended after 0 requests: ")


def test_a_line_that_was_written_in_part_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "trace.jsonl"
    recorder = BlockTraceRecorder(path)
    recorder.begin("first", 16, [b"a"])
    recorder.end("first", 2)
    whole = path.read_bytes()
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, place: pwrite(fd, data[:9], place))
    recorder.begin("second", 16, [b"b"])
    assert path.read_bytes() == whole
    assert "after 1 requests: the disk is full" in caplog.text


def test_a_recording_that_another_thread_closed_is_no_error(tmp_path: Path) -> None:
    recorder = BlockTraceRecorder(tmp_path / "trace.jsonl")
    recorder.begin("first", 16, [b"a"])
    recorder.close()
    recorder.end("first", 1)
    recorder.begin("second", 16, [b"a"])
    recorder.close()
    assert [line["output_length"] for line in lines_of(tmp_path / "trace.jsonl")] == [0]


@pytest.mark.parametrize("where", ["nowhere/trace.jsonl", "", "pipe"])
def test_what_cannot_be_written_is_an_error_at_the_start(tmp_path: Path, where: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    for recording in (BlockTraceRecorder, check_recordable):
        with pytest.raises(BlockTraceError, match=r"^the block trace .* cannot be recorded: "):
            recording(tmp_path / where)


def test_the_check_leaves_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("{}\n")
    check_recordable(path)
    assert path.read_text() == "{}\n"
