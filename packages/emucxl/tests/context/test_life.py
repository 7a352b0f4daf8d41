"""Contexts: whom they outlive, and who may close them."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

from emucxl.context import Context
from emucxl.errors import (
    ArgumentError,
    ClosedError,
    InUseError,
)
from emucxl.providers import Shm

MIB = 1 << 20


def open_fds() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def test_closing_frees_buffers_and_ends_all_use() -> None:
    context = Context()
    tier = context.add_tier("local", MIB)
    buffer = tier.alloc(100)
    context.close()
    context.close()
    assert context.closed
    assert buffer.freed
    assert repr(context) == "<Context, closed>"
    assert repr(buffer) == "<Buffer, freed>"
    buffer.free()
    for use in (
        lambda: buffer.read(),
        lambda: buffer.write(b"x"),
        lambda: buffer.address,
        lambda: memoryview(buffer),
        lambda: tier.alloc(1),
        lambda: tier.stats(),
        lambda: tier.info,
        lambda: context.now_ns,
        lambda: context.advance(1),
        lambda: context.check(),
        lambda: context.query(0),
        lambda: context.add_tier("more", MIB),
        lambda: context.read_batch([]),
        lambda: context.handle,
    ):
        with pytest.raises(ClosedError, match="the context is closed"):
            use()


def test_a_context_in_use_is_not_closed() -> None:
    context = Context()
    buffer = context.add_tier("local", MIB).alloc(100)
    view = memoryview(buffer)
    with pytest.raises(InUseError, match=r"uses in progress: 1 \(views"):
        context.close()
    assert not context.closed
    view[0] = 7
    assert buffer.read(1) == b"\7"
    view.release()
    with context.held() as handle:
        assert handle == context.handle
        with pytest.raises(InUseError):
            context.close()
    context.close()


def test_an_error_inside_a_block_is_not_hidden_by_the_views_it_leaves() -> None:
    with pytest.raises(ZeroDivisionError), Context() as context:  # noqa: PT012
        tier = context.add_tier("local", MIB)
        with tier.alloc(100) as buffer:
            view = memoryview(buffer)
            _ = 1 // 0
    assert not context.closed
    view.release()
    context.close()


def test_everything_is_freed_with_the_last_reference() -> None:
    before = open_fds()
    context = Context()
    tier = context.add_tier("local", MIB, Shm())
    buffer = tier.alloc(100)
    gone = weakref.ref(context)
    del context, tier
    gc.collect()
    assert gone() is not None, "a buffer keeps its context"
    buffer.write(b"still there")
    del buffer
    gc.collect()
    assert gone() is None
    assert open_fds() == before


def test_contexts_in_reference_cycles_are_collected() -> None:
    before = open_fds()

    class Owner:
        pass

    for _ in range(20):
        owner = Owner()
        owner.context = Context()  # type: ignore[attr-defined]
        owner.tier = owner.context.add_tier("local", MIB)  # type: ignore[attr-defined]
        owner.buffer = owner.tier.alloc(100)  # type: ignore[attr-defined]
        owner.view = memoryview(owner.buffer)  # type: ignore[attr-defined]
        owner.tier.owner = owner  # type: ignore[attr-defined]
    del owner
    assert open_fds() == before


def test_a_context_is_opened_once() -> None:
    with Context() as context, pytest.raises(ArgumentError, match="open already"):
        context._adopt(1)


def test_tiers_can_be_added_and_used_by_many_threads_at_once() -> None:
    with Context() as context:

        def work(number: int) -> None:
            tier = context.add_tier(f"tier {number}", MIB)
            for size in range(1, 300):
                with tier.alloc(size) as buffer:
                    buffer.fill(number)
                    assert buffer.read() == bytes([number]) * size

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        context.check()
        assert [context.tiers[f"tier {n}"].stats().num_allocations for n in range(8)] == [0] * 8
        assert sorted(tier.number for tier in context.tiers.values()) == list(range(8))


def test_a_forks_child_finds_contexts_closed_and_views_alive() -> None:
    """And what it collects takes nothing from the parent."""
    with Context() as context:
        tier = context.add_tier("shared", MIB, Shm())
        buffer, other = tier.alloc(100), tier.alloc(100)
        other.write(b"theirs")
        with memoryview(buffer) as view:
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    view[0] = 42
                    del other
                    try:
                        buffer.read()
                    except ClosedError as error:
                        code = 0 if "belongs to the parent process" in str(error) else 2
                    buffer.free()
                    context.close()
                    with Context() as own:
                        own.add_tier("local", MIB).alloc(100).write(b"mine")
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert buffer.read(1) == b"\x2a"
        assert other.read(6) == b"theirs"
        context.check()


EXIT = """
import sys, threading
import emucxl
context = emucxl.Context()
tier = context.add_tier("local", 1 << 20)
buffer = tier.alloc(1000)
view = memoryview(buffer)
sys.keep = [context, tier, buffer, view, tier.alloc(3)]
"""


@pytest.mark.parametrize(
    "more", ["", "del sys.keep", "sys.exit(0)", "def hold(b=buffer): pass", "import os; os.fork()"]
)
def test_leaving_the_interpreter_with_everything_open_is_quiet(more: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", EXIT + more], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_importing_pulls_in_few_modules_and_neither_numpy_nor_torch() -> None:
    """An import of emucxl costs some 30 modules of Python's own, and with a first context 130."""
    code = (
        "import sys; before = set(sys.modules); import emucxl; imported = set(sys.modules) - before;"
        "emucxl.Context().add_tier('local', 1 << 20).alloc(1);"
        "assert not {'numpy', 'torch', 'typer', 'rich'} & set(sys.modules);"
        "print(len(imported), len(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=120)
    imported, used = map(int, done.stdout.split())
    assert imported < 60
    assert used < 200


@pytest.mark.parametrize("name", ["", "x" * 32, "a\nb", "a\0b", 5])
def test_a_name_that_cannot_be_shown_is_refused(name: Any) -> None:
    with pytest.raises(ArgumentError, match="name"):
        Context(name=name)
