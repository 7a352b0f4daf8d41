"""Every source of memory keeps the same promises; what a cache asks too much of says so."""

from __future__ import annotations

import gc
import mmap
import os
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from importlib.util import module_from_spec, spec_from_file_location

import numpy as np
import pytest
import torch

from emucxl import Anon, Shm, resources
from emucxl.errors import UnavailableError
from interlace.engine.cache import memory
from interlace.engine.cache.kv_cache import KVCache
from interlace.engine.cache.layout import CacheLayout
from interlace.engine.cache.memory import (
    DeviceMemory,
    MemorySource,
    PrivatePages,
    TierMemory,
    default_source,
)
from interlace.errors import EngineError
from tokenweave.kernels import HeadLayout, ReferenceKernels

SOURCES: dict[str, Callable[[], MemorySource]] = {
    "anon": lambda: TierMemory(Anon()),
    "shm": lambda: TierMemory(Shm()),
    "pages": PrivatePages,
    "device": lambda: DeviceMemory(torch.device("cpu")),
}
LAYOUT = CacheLayout(2, HeadLayout(2, (0, 1), 8), torch.float32)


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> Iterator[MemorySource]:
    with closing(SOURCES[request.param]()) as made:
        yield made


def resident_bytes(tensor: torch.Tensor) -> int:
    """Of the tensor's own pages: the kernel joins its mapping with neighbours that may be full."""
    page = mmap.PAGESIZE
    first, last = tensor.data_ptr() // page, -(-(tensor.data_ptr() + tensor.nbytes) // page)
    with open("/proc/self/pagemap", "rb", buffering=0) as entries:
        entries.seek(8 * first)
        found = np.frombuffer(entries.read(8 * (last - first)), dtype=np.uint64)
    assert len(found) == last - first
    return int((found >> np.uint64(63)).sum()) * page  # the highest bit: the page is in memory


@pytest.mark.parametrize("shape", [(3, 5), (1,), (4, 0, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_zero_and_writable(
    source: MemorySource, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    tensor = source.zeros(shape, dtype)
    assert tensor.shape == shape
    assert tensor.dtype == dtype
    assert not tensor.any()
    tensor.fill_(1)
    assert tensor.eq(1).all()


def test_memory_is_resident_only_once_written(source: MemorySource) -> None:
    tensor = source.zeros((64 << 20,), torch.uint8)
    assert resident_bytes(tensor) < 8 << 20
    tensor[: 16 << 20] = 1
    assert 16 << 20 <= resident_bytes(tensor) < 32 << 20


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_a_closed_cache_leaves_no_memory_and_no_descriptor(make: Callable[[], MemorySource]) -> None:
    gc.disable()  # whoever opens one model after the other runs no collector between them
    try:
        descriptors = len(os.listdir("/proc/self/fd"))
        cache = KVCache(ReferenceKernels(), LAYOUT, 4096, make())
        tensor = weakref.ref(cache.tensor)
        cache.close()
        assert tensor() is None
        assert len(os.listdir("/proc/self/fd")) == descriptors
    finally:
        gc.enable()


def test_a_tensor_outlives_the_cache_that_was_closed() -> None:
    cache = KVCache(ReferenceKernels(), LAYOUT, 3)
    tensor = cache.tensor
    cache.close()
    tensor.fill_(2)
    assert tensor.eq(2).all()


@pytest.mark.parametrize("num_blocks", [10**12, 10**40])
def test_a_cache_beyond_all_memory_is_refused(source: MemorySource, num_blocks: int) -> None:
    with pytest.raises(EngineError, match="grants no such room: lower num_kv_blocks or kv_cache_gb"):
        KVCache(ReferenceKernels(), LAYOUT, num_blocks, source)


def test_a_cache_that_could_not_be_filled_is_refused() -> None:
    available = resources.available_bytes()
    assert available is not None
    with pytest.raises(EngineError, match=r"the system has .* bytes available"):
        KVCache(ReferenceKernels(), LAYOUT, 2 * available // LAYOUT.block_bytes)


def test_a_cache_lies_where_the_kernels_compute() -> None:
    cache = KVCache(ReferenceKernels(device="meta"), LAYOUT, 3)
    assert cache.tensor.device.type == "meta"
    cache.close()


def test_a_device_without_room_is_refused() -> None:
    class Full(PrivatePages):
        def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
            raise torch.OutOfMemoryError("out of memory: tried to allocate 2.00 GiB")

    with pytest.raises(EngineError, match=r"lower num_kv_blocks or kv_cache_gb \(out of memory: tried"):
        KVCache(ReferenceKernels(), LAYOUT, 3, Full())


def test_a_cache_does_without_the_native_core(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise UnavailableError("no core")

    monkeypatch.setattr("emucxl.Context", missing)
    assert isinstance(default_source(), PrivatePages)


def test_a_cache_does_without_the_extension_of_the_tiers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with a GPU where nothing of this project could be built."""
    for name in ("emucxl.buffer", "emucxl.context", "emucxl.tiers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "emucxl._buffer", None)  # which makes an import of it fail
    spec = spec_from_file_location("memory_anew", memory.__file__)
    assert spec is not None
    assert spec.loader is not None
    anew = module_from_spec(spec)
    spec.loader.exec_module(anew)
    assert isinstance(anew.default_source(torch.device("cuda", 0)), anew.DeviceMemory)
    assert isinstance(anew.default_source(), anew.PrivatePages)
