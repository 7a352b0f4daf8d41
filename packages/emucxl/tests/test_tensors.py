"""Arrays and tensors over buffers share their memory, and keep it where it is."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from emucxl.buffer import Buffer
from emucxl.context import Context
from emucxl.errors import ArgumentError, ClosedError, InUseError, UnavailableError
from emucxl.providers import Null


@pytest.fixture
def buffer() -> Iterator[Buffer]:
    with Context("virtual") as context:
        yield context.add_tier("local", 1 << 20).alloc(1024)


VIEWS: dict[str, Callable[[Buffer], Any]] = {
    "numpy.frombuffer": lambda buffer: np.frombuffer(buffer, np.uint8),  # type: ignore[call-overload]
    "numpy.asarray": lambda buffer: np.asarray(memoryview(buffer)),
    "numpy.from_dlpack": np.from_dlpack,
    "torch.frombuffer": lambda buffer: torch.frombuffer(buffer, dtype=torch.uint8),
    "torch.from_dlpack": torch.from_dlpack,
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_view_is_the_buffers_memory(buffer: Buffer, view: Callable[[Buffer], Any]) -> None:
    array = view(buffer)
    assert array.shape == (1024,)
    assert str(array.dtype).removeprefix("torch.") == "uint8"
    address = array.data_ptr() if isinstance(array, torch.Tensor) else array.ctypes.data
    assert address == buffer.address
    buffer.write(b"\7", 5)
    assert array[5] == 7
    array[6] = 8
    array[1000:] = 1
    assert buffer.read(3, 5) == b"\7\10\0"
    assert buffer.read(24, 1000) == b"\1" * 24


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_while_an_array_lives_the_buffer_stays(buffer: Buffer, view: Callable[[Buffer], Any]) -> None:
    array = view(buffer)
    for call in (buffer.free, lambda: buffer.resize(1), buffer.context.close):
        with pytest.raises(InUseError):
            call()
    part = array[10:20]
    del array
    with pytest.raises(InUseError):
        buffer.free()
    del part
    gc.collect()
    buffer.free()


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_an_array_outlives_every_name_of_its_buffer(view: Callable[[Buffer], Any]) -> None:
    def make() -> Any:
        return view(Context().add_tier("local", 1 << 20).alloc(100))

    array = make()
    gc.collect()
    array[99] = 5
    assert array.sum() == 5


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_freed_buffer_has_no_views(buffer: Buffer, view: Callable[[Buffer], Any]) -> None:
    buffer.free()
    with pytest.raises((ClosedError, RuntimeError)):  # the latter is torch's own
        view(buffer)


def test_other_types_are_a_matter_of_the_view(buffer: Buffer) -> None:
    floats = torch.frombuffer(buffer, dtype=torch.float32).view(16, 16)
    floats.copy_(torch.eye(16))
    array = np.frombuffer(buffer, np.float32).reshape(16, 16)  # type: ignore[call-overload]
    assert (array == np.eye(16)).all()
    bfloats = torch.from_dlpack(buffer).view(torch.bfloat16)
    assert bfloats.data_ptr() == buffer.address


def test_arrays_are_read_and_written(buffer: Buffer) -> None:
    array = np.arange(64, dtype=np.int64)
    buffer.write(array, 8)
    target = np.zeros((8, 8), np.int64)
    buffer.read_into(target, 8)
    assert (target.ravel() == array).all()
    for bad in (target[:, ::2], target.T):
        with pytest.raises(ArgumentError, match="gives no contiguous bytes"):
            buffer.write(bad)
        with pytest.raises(ArgumentError, match="gives no contiguous writable bytes"):
            buffer.read_into(bad)
    array.flags.writeable = False
    with pytest.raises(ArgumentError, match="gives no contiguous writable bytes"):
        buffer.read_into(array)
    buffer.write(array)


# ---- DLPack itself ---------------------------------------------------------------------------------------------------


def test_the_device_is_the_cpu(buffer: Buffer) -> None:
    assert buffer.__dlpack_device__() == (1, 0)


@pytest.mark.parametrize(
    ("max_version", "name"),
    [
        (None, "dltensor"),
        ((0, 8), "dltensor"),
        ((1, 0), "dltensor_versioned"),
        ((1, 2), "dltensor_versioned"),
    ],
)
def test_the_capsule_is_of_the_version_that_was_asked_for(
    buffer: Buffer, max_version: tuple[int, int] | None, name: str
) -> None:
    capsule = buffer.__dlpack__(max_version=max_version)
    assert f'"{name}"' in repr(capsule)
    with pytest.raises(InUseError):
        buffer.free()
    del capsule
    buffer.free()


def test_a_capsule_can_outlive_the_interest_in_it(buffer: Buffer) -> None:
    capsule = buffer.__dlpack__()
    tensor = torch.utils.dlpack.from_dlpack(capsule)
    del capsule
    tensor[0] = 1
    assert buffer.read(1) == b"\1"
    del tensor
    buffer.free()


def test_a_copy_is_asked_for_by_name(buffer: Buffer) -> None:
    buffer.write(b"abc")
    accesses = buffer.tier.stats().read_accesses
    for capsule in (buffer.__dlpack__(copy=True), buffer.__dlpack__(copy=True, max_version=(1, 0))):
        copied = torch.utils.dlpack.from_dlpack(capsule)
        copied[0] = 0
        assert bytes(copied[:3].numpy()) == b"\0bc"
    assert buffer.read(3) == b"abc"
    assert buffer.tier.stats().read_accesses == accesses + 3
    buffer.free()
    assert copied[1] == ord("b")


def test_a_versioned_capsule_tells_that_it_is_a_copy(buffer: Buffer) -> None:
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]

    class Versioned(ctypes.Structure):
        _fields_ = (
            ("major", ctypes.c_uint32),
            ("minor", ctypes.c_uint32),
            ("owner", ctypes.c_void_p),
            ("deleter", ctypes.c_void_p),
            ("flags", ctypes.c_uint64),
        )

    for copy, flags in ((None, 0), (False, 0), (True, 2)):
        capsule = buffer.__dlpack__(copy=copy, max_version=(1, 0))
        found = Versioned.from_address(get_pointer(capsule, b"dltensor_versioned"))
        assert (found.major, found.minor, found.flags) == (1, 0, flags)


def test_what_cannot_be_exported_is_refused(buffer: Buffer) -> None:
    with pytest.raises(BufferError, match=r"got dl_device \(2, 0\); expected \(1, 0\)"):
        buffer.__dlpack__(dl_device=(2, 0))
    buffer.__dlpack__(dl_device=(1, 0))
    with pytest.raises(ArgumentError, match="got stream 1; expected None"):
        buffer.__dlpack__(stream=1)  # type: ignore[arg-type]
    for bad in ({"max_version": 1}, {"max_version": ("1", 0)}, {"dl_device": (1,)}, {"other": 1}):
        with pytest.raises(TypeError):
            buffer.__dlpack__(**bad)  # type: ignore[arg-type]
    nothing = buffer.context.add_tier("null", 1 << 20, Null()).alloc(10)
    with pytest.raises(UnavailableError, match="no bytes to view"):
        nothing.__dlpack__()
    buffer.free()


def test_tensors_may_die_in_any_thread(buffer: Buffer) -> None:
    tensors = [torch.from_dlpack(buffer) for _ in range(100)]
    with warnings.catch_warnings():
        threads = [threading.Thread(target=tensors.pop) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with pytest.raises(InUseError):
        buffer.free()
    tensors.clear()
    buffer.free()


def test_a_tensor_that_lives_to_the_end_of_the_process_is_no_trouble() -> None:
    code = (
        "import sys, torch, emucxl\n"
        "buffer = emucxl.Context().add_tier('local', 1 << 20).alloc(100)\n"
        "sys.keep = torch.from_dlpack(buffer), buffer.__dlpack__()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
