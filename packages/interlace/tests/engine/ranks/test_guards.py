"""Guards: Ctrl-C waits for the end of the outermost block, and the handler is then the one that was there."""

from __future__ import annotations

import signal
import threading

import pytest

from interlace.engine.ranks.guards import interrupts_deferred


def test_an_interrupt_inside_a_block_comes_at_the_end_of_the_outermost() -> None:
    before, passed = signal.getsignal(signal.SIGINT), []

    def nest() -> None:
        with interrupts_deferred():
            signal.raise_signal(signal.SIGINT)
            passed.append("inside")
        passed.append("between")

    with pytest.raises(KeyboardInterrupt), interrupts_deferred():
        nest()
    assert passed == ["inside", "between"]
    assert signal.getsignal(signal.SIGINT) is before
    with interrupts_deferred():
        pass  # it came once


def test_an_error_inside_a_block_leaves_the_next_one_whole() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="broken"), interrupts_deferred():
        raise ValueError("broken")
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt), interrupts_deferred():
        signal.raise_signal(signal.SIGINT)


def test_a_side_thread_leaves_the_handler_alone() -> None:
    seen = []

    def enter() -> None:
        with interrupts_deferred():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join(10)
    assert seen == [signal.getsignal(signal.SIGINT)]
