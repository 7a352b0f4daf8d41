"""emucxl's C interface for tests of the core: every call as it is, with failures as exceptions."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from emucxl import abi, errors, native

MIB = 1 << 20


def provider_unavailable(provider: int) -> str | None:
    reason = abi.load().emx_provider_unavailable(provider)
    return None if reason is None else reason.decode()


class NativeContext:
    """An emx_context; pointers are integers."""

    def __init__(self, clock: int = abi.CLOCK_REAL, calibration: abi.RawCalibration | None = None) -> None:
        self.library = abi.load()
        self.handle = ctypes.c_void_p()
        config = abi.ContextConfig(clock=clock)
        if calibration is not None:
            config.calibration = ctypes.pointer(calibration)
        native.check(self.library.emx_context_open(ctypes.byref(config), ctypes.byref(self.handle)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.library.emx_context_close(self.handle)

    def add_tier(self, name: str = "tier", capacity_bytes: int = 16 * MIB, **fields: Any) -> int:
        tier = ctypes.c_uint32()
        config = abi.TierConfig(name=name.encode(), capacity_bytes=capacity_bytes, **{"fd": -1, **fields})
        native.check(self.library.emx_tier_add(self.handle, ctypes.byref(config), ctypes.byref(tier)))
        return tier.value

    def info(self, tier: int) -> abi.RawTierInfo:
        info = abi.RawTierInfo()
        native.check(self.library.emx_tier_get_info(self.handle, tier, ctypes.byref(info)))
        return info

    def stats(self, tier: int) -> abi.RawTierStats:
        stats = abi.RawTierStats()
        native.check(self.library.emx_tier_get_stats(self.handle, tier, ctypes.byref(stats)))
        return stats

    def trim(self, tier: int) -> None:
        native.check(self.library.emx_tier_trim(self.handle, tier))

    def check(self) -> None:
        native.check(self.library.emx_context_check(self.handle))

    @property
    def now_ns(self) -> int:
        return int(self.library.emx_context_now_ns(self.handle))

    def advance(self, duration_ns: int) -> None:
        self.library.emx_context_advance(self.handle, duration_ns)

    def alloc(self, tier: int, size_bytes: int, alignment: int = 0) -> int:
        pointer = ctypes.c_void_p()
        native.check(self.library.emx_alloc(self.handle, tier, size_bytes, alignment, ctypes.byref(pointer)))
        return pointer.value or 0

    def free(self, pointer: int | None) -> None:
        native.check(self.library.emx_free(self.handle, pointer))

    def resize(self, pointer: int, size_bytes: int) -> int:
        moved = ctypes.c_void_p()
        native.check(self.library.emx_resize(self.handle, pointer, size_bytes, ctypes.byref(moved)))
        return moved.value or 0

    def migrate(self, pointer: int, tier: int) -> int:
        moved = ctypes.c_void_p()
        native.check(self.library.emx_migrate(self.handle, pointer, tier, ctypes.byref(moved)))
        return moved.value or 0

    def query(self, pointer: int) -> abi.RawAllocation:
        found = abi.RawAllocation()
        native.check(self.library.emx_query(self.handle, pointer, ctypes.byref(found)))
        return found

    def read(self, pointer: int, offset: int, size_bytes: int) -> bytes:
        buffer = ctypes.create_string_buffer(size_bytes)
        native.check(self.library.emx_read(self.handle, pointer, offset, buffer, size_bytes))
        return buffer.raw

    def write(self, pointer: int, offset: int, data: bytes) -> None:
        native.check(self.library.emx_write(self.handle, pointer, offset, data, len(data)))

    def memset(self, pointer: int, offset: int, value: int, size_bytes: int) -> None:
        native.check(self.library.emx_memset(self.handle, pointer, offset, value, size_bytes))

    def copy(self, to: int, to_offset: int, source: int, source_offset: int, size_bytes: int) -> None:
        native.check(self.library.emx_copy(self.handle, to, to_offset, source, source_offset, size_bytes))

    def read_batch(self, accesses: Sequence[tuple[int, int, int]]) -> list[bytes]:
        """Of (pointer, offset, size) each."""
        buffers = [ctypes.create_string_buffer(b"?" * size, size) for _, _, size in accesses]
        batch = self._batch([(*access[:2], buffer) for access, buffer in zip(accesses, buffers, strict=True)])
        native.check(self.library.emx_read_batch(self.handle, batch, len(accesses)))
        return [buffer.raw for buffer in buffers]

    def write_batch(self, accesses: Sequence[tuple[int, int, bytes]]) -> None:
        """Of (pointer, offset, data) each."""
        buffers = [ctypes.create_string_buffer(data, len(data)) for _, _, data in accesses]
        batch = self._batch([(*access[:2], buffer) for access, buffer in zip(accesses, buffers, strict=True)])
        native.check(self.library.emx_write_batch(self.handle, batch, len(accesses)))

    def poison(self, tier: int, address: int, size_bytes: int) -> None:
        native.check(self.library.emx_poison(self.handle, tier, address, size_bytes))

    @staticmethod
    def _batch(accesses: Sequence[tuple[int, int, ctypes.Array[Any]]]) -> ctypes.Array[abi.Access]:
        batch = (abi.Access * max(len(accesses), 1))()
        for entry, (pointer, offset, buffer) in zip(batch, accesses, strict=False):
            entry.pointer, entry.offset, entry.size_bytes = pointer, offset, len(buffer)
            entry.buffer = ctypes.addressof(buffer)
        return batch


def fill(context: NativeContext, tier: int, size_bytes: int) -> list[int]:
    """Allocates blocks of one size, aligned to it, until the tier is full."""
    pointers = []
    while True:
        try:
            pointers.append(context.alloc(tier, size_bytes, size_bytes))
        except errors.TierFullError:
            return pointers


def three_tiers() -> Iterator[NativeContext]:
    """Tiers 0, "local", and 1, "far": unmodelled memory of this process; tier 2, "nowhere": addresses alone."""
    with NativeContext() as opened:
        opened.add_tier("local")
        opened.add_tier("far")
        opened.add_tier("nowhere", provider=abi.PROVIDER_NULL)
        yield opened
        opened.check()


def status_of(call: Callable[..., int], *arguments: object) -> type[errors.EmucxlError] | None:
    """The exception that a call's status stands for, or None for EMX_OK."""
    status = call(*arguments)
    return type(native.error_of(status)) if status else None
