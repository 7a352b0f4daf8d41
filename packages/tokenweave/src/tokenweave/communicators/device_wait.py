"""Waiting for a device, with an eye on those who are to bring the end of the wait about."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

POLL_S = 20e-6
WATCH_S = 0.05


class DeviceEvent(Protocol):
    """An event of a device, as `torch.cuda.Event` is."""

    def query(self) -> bool:
        """Whether it has happened: all that was queued before it is done."""


def happens(event: DeviceEvent, timeout_s: float, look: Callable[[], None], slice_s: float) -> bool:
    """Whether `event` happens within `timeout_s`. `look` is called every `slice_s` until then, and may raise.

    Not `Event.synchronize`: that would wait for ever for a collective which a rank that is gone does not join.
    """
    begun_s = looked_s = time.monotonic()
    while not event.query():
        now_s = time.monotonic()
        if now_s - begun_s >= timeout_s:
            return False
        if now_s - looked_s >= slice_s:
            look()
            looked_s = now_s
        time.sleep(POLL_S)
    return True


def within(timeout_s: float, call: Callable[[], object], watch: Callable[[], None] | None = None) -> bool:
    """Whether `call`, on a thread of its own, ends within `timeout_s`. `watch` is called meanwhile, and may raise.

    A call that does not end is left behind, with its thread. Raises what the call raised.
    """
    raised: list[BaseException] = []

    def body() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=body, name="a call that may hang", daemon=True)
    thread.start()
    until_s = time.monotonic() + timeout_s
    while thread.is_alive() and (left_s := until_s - time.monotonic()) > 0:
        thread.join(min(left_s, WATCH_S))
        if watch is not None:
            watch()
    if raised:
        raise raised[0]
    return not thread.is_alive()
