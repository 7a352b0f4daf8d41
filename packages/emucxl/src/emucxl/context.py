"""Contexts: one program's view of its memories.

    with Context() as context:
        local = context.add_tier("local", 1 << 30)
        cxl = context.add_tier("cxl", 4 << 30, timing="cxl-direct")
        buffer = cxl.alloc(4096)
        buffer.write(b"hello")

Thread safety: any call from any thread. `close` refuses while anything of the context is in use.

Invariants:
  1. A buffer keeps its tier alive, a tier its context. The memory goes with the last of them, or at `close`.
  2. A context belongs to the process that opened it. In a fork's child it is closed; views of its buffers stay valid.
"""

from __future__ import annotations

import ctypes
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from emucxl import abi, native
from emucxl import calibration as machine_calibration
from emucxl._buffer import ContextBase
from emucxl.arguments import instance, natural, text_bytes
from emucxl.buffer import Buffer, bind
from emucxl.calibration import Calibration
from emucxl.errors import ArgumentError, ArgumentTypeError, InUseError, NotFoundError
from emucxl.locks import new_lock
from emucxl.providers import Anon, Borrowed, Provider
from emucxl.tiers import Tier, is_touchable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Self

    from emucxl.links import Link
    from emucxl.presets import Preset
    from emucxl.timing import Timing

Clock = Literal["real", "virtual"]
_CLOCKS: dict[str, int] = {"real": abi.CLOCK_REAL, "virtual": abi.CLOCK_VIRTUAL}


@dataclass(frozen=True)
class Allocation:
    """The allocation that an address points into."""

    base: int
    size_bytes: int
    offset: int
    """Of the address, from `base`."""
    tier: Tier


class Context(ContextBase):
    """Memories, and a clock.

    On the `real` clock an access takes as long as the model says; on the `virtual` one it takes what it takes, and
    `now_ns` moves on by what the model says: deterministic as long as one thread uses the context.
    """

    def __init__(
        self, clock: Clock = "real", calibration: Calibration | None = None, name: str | None = None
    ) -> None:
        """`calibration` is what the real clock's model starts from; when the first modelled tier is added without one,
        it is `emucxl.calibration.of_this_machine()`, which is measured once and kept. `name` is what `emucxl top` shows
        instead of the command: at most 31 bytes, "rank 1", say.

        Raises:
            ArgumentError: there is no such clock, or the name is empty, too long or not printable.
            UnavailableError: the native core cannot be loaded.
        """
        if not isinstance(clock, str) or clock not in _CLOCKS:
            raise ArgumentError(f"got the clock {clock!r}; expected 'real' or 'virtual'")
        encoded_name = None if name is None else text_bytes("name", name)
        library = bind()
        config, handle = abi.ContextConfig(clock=_CLOCKS[clock]), ctypes.c_void_p()
        if calibration is not None:
            instance("calibration", calibration, Calibration, "a Calibration")
            config.calibration = ctypes.pointer(calibration.to_abi())
        native.check(library.emx_context_open(ctypes.byref(config), ctypes.byref(handle)))
        self._adopt(handle.value or 0)
        if encoded_name is not None:
            native.declare(
                library, {"emx_context_set_name": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p])}
            )
            native.check(library.emx_context_set_name(handle, encoded_name))
        self._library = library
        self._clock: Clock = clock
        self._lock = new_lock()  # of the fields below, and of adding tiers
        self._calibrated = calibration is not None
        self._tiers: dict[str, Tier] = {}
        self._borrowed: list[Borrowed] = []  # what tiers stand on, until this is closed

    @property
    def clock(self) -> Clock:
        return self._clock

    @property
    def tiers(self) -> Mapping[str, Tier]:
        """Its tiers by name, in the order they were added."""
        return MappingProxyType(self._tiers)

    def tier(self, tier: Tier | str) -> Tier:
        """The tier of that name, or `tier` itself if it is one of this context.

        Raises:
            NotFoundError: there is none of that name.
            ArgumentError: it belongs to another context.
        """
        if isinstance(tier, Tier):
            if tier.context is not self:
                raise ArgumentError(f"got {tier!r} of another context; expected one of {self!r}")
            return tier
        if not isinstance(tier, str):
            raise ArgumentTypeError(f"got a tier {type(tier)!r}; expected a Tier or the name of one")
        if tier not in self._tiers:
            raise NotFoundError(
                f"got the tier {tier!r}; expected one of {', '.join(map(repr, self._tiers)) or 'none'}"
            )
        return self._tiers[tier]

    def add_tier(
        self,
        name: str,
        capacity_bytes: int = 0,
        provider: Provider | None = None,
        timing: Timing | Preset | str | None = None,
        link: Link | None = None,
    ) -> Tier:
        """A new tier.

        `capacity_bytes` is rounded up to whole pages; 0 is all that a device, file or region has. `provider` is Anon()
        where left out. `timing` is a Timing, a Preset or the name of one (`emucxl presets` lists them); None models
        nothing. Traffic queues on `link` too, where there is one.

        Raises:
            NameTakenError: the context has a tier of that name.
            UnavailableError: the provider does not work here.
            SystemMemoryError: the system cannot give that much.
            TooFastError: this machine is slower than `timing`.
            ArgumentError: anything else is wrong with the arguments.
        """
        provider = Anon() if provider is None else provider
        instance("provider", provider, Provider, "a Provider, such as Shm()")
        borrowed = provider.borrow()
        try:
            tier = self._add_tier(name, capacity_bytes, provider, timing, link)
        except BaseException:
            if borrowed is not None:
                borrowed.end()
            raise
        if borrowed is not None:
            self._borrowed.append(borrowed)
        return tier

    def _add_tier(
        self,
        name: str,
        capacity_bytes: int,
        provider: Provider,
        timing: Timing | Preset | str | None,
        link: Link | None,
    ) -> Tier:
        config = abi.TierConfig(
            name=_encode_name(name), capacity_bytes=_check_capacity(capacity_bytes), fd=-1
        )
        provider.configure(config)
        resolved = resolve_timing(timing)
        if resolved is not None:
            config.timing = resolved.to_abi()
        if link is not None:
            from emucxl.links import Link

            instance("link", link, Link, "a Link")
            config.link = link.handle
        with self._lock, self.held() as handle:
            if self._clock == "real" and not self._calibrated and (resolved is not None or link is not None):
                self._calibrate(handle)
            number = ctypes.c_uint32()
            native.check(self._library.emx_tier_add(handle, ctypes.byref(config), ctypes.byref(number)))
            info = abi.RawTierInfo()
            native.check(self._library.emx_tier_get_info(handle, number.value, ctypes.byref(info)))
            modelled = bool(info.modelled)
            tier = Tier(self, number.value, modelled, is_touchable(provider), provider, resolved, link)
            self._tiers[name] = tier
        return tier

    def alloc(self, size_bytes: int, tier: Tier | str, alignment: int = 0) -> Buffer:
        """A new buffer of zeros in `tier`; see `Tier.alloc`."""
        return self.tier(tier).alloc(size_bytes, alignment)

    def query(self, address: int) -> Allocation:
        """The live allocation that `address` points into.

        Raises:
            BadPointerError: there is none.
        """
        raw = abi.RawAllocation()
        with self.held() as handle:
            native.check(self._library.emx_query(handle, natural("address", address), ctypes.byref(raw)))
        tier = next(tier for tier in self._tiers.values() if tier.number == raw.tier)
        return Allocation(raw.base, raw.size_bytes, raw.offset, tier)

    def check(self) -> None:
        """Checks every invariant of every tier's heap. Slow: for tests.

        Raises:
            CorruptError: naming the first that does not hold.
        """
        with self.held() as handle:
            native.check(self._library.emx_context_check(handle))

    def calibrate(self) -> None:
        """Gives the real clock's model this machine's calibration, unless it has one. `add_tier` does so by itself."""
        with self._lock, self.held() as handle:
            if self._clock == "real" and not self._calibrated:
                self._calibrate(handle)

    @contextmanager
    def held(self) -> Iterator[int]:
        """The native handle, kept open inside the block: `close` raises InUseError meanwhile."""
        handle = self.retain()
        try:
            yield handle
        finally:
            self.release()

    def close(self) -> None:
        """Frees every buffer and tier; a second call does nothing.

        Raises:
            InUseError: a buffer is exported, or another thread is using it; nothing has changed then.
        """
        super().close()
        while self._borrowed:
            self._borrowed.pop().end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        """Closes it. When an error leaves the block and views are still in use, that error is the one to tell of: the
        context then goes with the last view."""
        with suppress(*([InUseError] if kind is not None else [])):
            self.close()

    def __repr__(self) -> str:
        if self.closed:
            return "<Context, closed>"
        return f"<Context on the {self._clock} clock with {', '.join(map(repr, self._tiers)) or 'no tiers'}>"

    def _calibrate(self, handle: int) -> None:
        of_this_machine = machine_calibration.of_this_machine().to_abi()
        native.check(self._library.emx_context_set_calibration(handle, ctypes.byref(of_this_machine)))
        self._calibrated = True


def resolve_timing(timing: Timing | Preset | str | None) -> Timing | None:
    """The timing that `add_tier` was asked for."""
    if timing is None:
        return None
    from emucxl.presets import Preset, preset
    from emucxl.timing import Timing

    if isinstance(timing, str):
        timing = preset(timing)
    if isinstance(timing, Preset):
        timing = timing.timing
    if not isinstance(timing, Timing):
        raise ArgumentTypeError(
            f"got a timing {type(timing)!r}; expected a Timing, a Preset, or the name of a preset"
        )
    return timing


def _encode_name(name: str) -> bytes:
    encoded = text_bytes("name", name)
    if not encoded or len(encoded) >= abi.NAME_BYTES:
        raise ArgumentError(f"got the name {name!r}; expected 1 to {abi.NAME_BYTES - 1} bytes without NUL")
    return encoded


def _check_capacity(capacity_bytes: int) -> int:
    return natural("capacity_bytes", capacity_bytes, 63)
