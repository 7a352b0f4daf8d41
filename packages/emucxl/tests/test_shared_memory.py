"""Shared segments: memory with no name and no owner to outlive."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from emucxl import resources, shared_memory
from emucxl.errors import EmucxlError, SegmentError
from emucxl.shared_memory import SharedSegment, unavailable_reason

WRITER = """
import os, sys
from emucxl.shared_memory import SharedSegment
with SharedSegment.attach(int(sys.argv[1]), int(sys.argv[2])) as segment:
    segment.buffer[:5] = b"hello"
    if len(sys.argv) > 3:
        os.kill(os.getpid(), 9)
"""


def open_fds() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def write_from_another_process(segment: SharedSegment, *extra: str) -> int:
    command = [sys.executable, "-c", WRITER, str(segment.fd), str(segment.size_bytes), *extra]
    return subprocess.run(command, pass_fds=[segment.fd], timeout=60).returncode


def test_a_new_segment_is_zero_and_writable() -> None:
    with SharedSegment.create("test", 10_000) as segment:
        assert segment.size_bytes == len(segment.buffer) == 10_000
        assert not np.frombuffer(segment.buffer, np.uint8).any()
        segment.buffer[9_999] = 7
        assert segment.buffer[9_999] == 7
        assert segment.address % mmap.PAGESIZE == 0


def test_another_process_shares_the_memory() -> None:
    with SharedSegment.create("test", 4096) as segment:
        assert write_from_another_process(segment) == 0
        assert bytes(segment.buffer[:6]) == b"hello\0"


def test_the_death_of_another_process_takes_nothing_away() -> None:
    name = f"test-{os.getpid()}"
    with SharedSegment.create(name, 4096) as segment:
        assert write_from_another_process(segment, "die") == -9
        assert bytes(segment.buffer[:5]) == b"hello"
    assert not [left for left in os.listdir("/dev/shm") if name in left]


def test_attaching_leaves_the_descriptor_to_the_caller() -> None:
    before = open_fds()
    with SharedSegment.create("test", 4096) as segment:
        attached = SharedSegment.attach(segment.fd, 4096)
        segment.buffer[0] = 1
        assert attached.buffer[0] == 1
        assert attached.fd != segment.fd
        segment.close()
        attached.buffer[1] = 2  # the memory is there while anyone has it
        attached.close()
    assert open_fds() == before


def test_the_descriptor_is_not_inherited_unasked() -> None:
    with SharedSegment.create("test", 4096) as segment:
        assert not os.get_inheritable(segment.fd)


def test_close_can_be_called_again_and_ends_all_use() -> None:
    segment = SharedSegment.create("test", 4096)
    segment.close()
    segment.close()
    assert segment.closed
    assert repr(segment) == "<SharedSegment of 4,096 bytes, closed>"
    for use in ("fd", "address", "buffer"):
        with pytest.raises(SegmentError, match="the segment is closed"):
            getattr(segment, use)


def test_a_view_in_use_keeps_the_segment_open() -> None:
    segment = SharedSegment.create("test", 4096)
    array = np.frombuffer(segment.buffer, np.uint8)
    with pytest.raises(SegmentError, match="cannot be closed while a view of it is in use"):
        segment.close()
    assert not segment.closed
    assert segment.buffer[0] == array[0] == 0
    del array
    segment.close()


@pytest.mark.parametrize("size_bytes", [0, -1])
def test_a_segment_needs_a_size(size_bytes: int) -> None:
    with pytest.raises(SegmentError, match=f"got size_bytes={size_bytes}; expected at least 1"):
        SharedSegment.create("test", size_bytes)
    with pytest.raises(SegmentError, match="expected at least 1"):
        SharedSegment.attach(0, size_bytes)


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 250, "é" * 125])
def test_a_name_that_the_kernel_refuses_is_refused(name: str) -> None:
    with pytest.raises(SegmentError, match="expected 1 to 249 bytes without NUL"):
        SharedSegment.create(name, 4096)


def test_a_name_that_has_no_bytes_is_refused() -> None:
    with pytest.raises(SegmentError, match="expected text without surrogates"):
        SharedSegment.create("\ud800", 4096)


def test_more_than_the_memory_there_is_is_refused_at_creation() -> None:
    with pytest.raises(
        SegmentError, match=r"expected at most the [\d,]+ bytes of memory that are available \(Cannot"
    ):
        SharedSegment.create("test", 1 << 50)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM])
def test_memory_that_cannot_be_reserved_is_an_error_with_the_systems_reason(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    before = open_fds()
    monkeypatch.setattr(shared_memory.os, "posix_fallocate", refuse)
    with pytest.raises(
        SegmentError, match=rf"cannot reserve 4,096 bytes .*{os.strerror(number)}.*{errno.errorcode[number]}"
    ):
        SharedSegment.create("test", 4096)
    assert open_fds() == before


def test_attaching_to_what_is_no_segment_is_refused() -> None:
    with pytest.raises(SegmentError, match=r"got fd 987654: .*expected the descriptor of a segment"):
        SharedSegment.attach(987654, 4096)
    with pytest.raises(SegmentError, match="expected the descriptor of a segment"):
        SharedSegment.attach(-1, 4096)
    segment = SharedSegment.create("test", 4096)
    with pytest.raises(SegmentError, match=r"of 4,096 bytes; expected a segment of 8,192"):
        SharedSegment.attach(segment.fd, 8192)
    segment.close()


def test_a_descriptor_that_cannot_be_mapped_is_not_leaked() -> None:
    before = open_fds()
    read_end, write_end = os.pipe()
    os.close(write_end)
    with pytest.raises(SegmentError, match="cannot map"):
        SharedSegment(read_end, 4096)
    assert open_fds() == before


def test_segments_are_available_here_and_their_absence_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unavailable_reason() is None
    monkeypatch.setattr(resources, "available_bytes", lambda: 1)
    assert "expected at most the 1 bytes" in (unavailable_reason() or "")
    monkeypatch.delattr(shared_memory.os, "memfd_create")
    assert "memfd_create" in (unavailable_reason() or "")


def test_the_errors_are_one_tree() -> None:
    assert issubclass(SegmentError, EmucxlError)


def test_an_error_of_closing_does_not_take_the_place_of_what_ended_the_block() -> None:
    segment = SharedSegment.create("test", 4096)
    view = segment.buffer
    with pytest.raises(KeyboardInterrupt) as caught, segment:
        raise KeyboardInterrupt
    assert "view of it is in use" in caught.value.__notes__[0]
    with pytest.raises(SegmentError), segment:
        pass
    view.release()
    segment.close()
