"""fork() beside threads that are inside emucxl: a child finds no lock held by a thread that it does not have."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import emucxl
from emucxl import calibration, compat
from emucxl.apps.queue import Queue
from emucxl.pool import Pool
from support.c_programs import PROGRAMS, compile_program, compiler, run_program

FACTS = re.findall(r"FACT\((\w+)\),", (PROGRAMS / "fork_facts.c").read_text())
CHILD_SECONDS = 100


@pytest.mark.skipif(compiler() is None, reason="there is no C compiler")
@pytest.mark.parametrize("fact", FACTS)
def test_fact(fact: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.getbasetemp() / "forks"
    directory.mkdir(exist_ok=True)
    # Without the address sanitizer: the allocator of gcc 12's takes no lock before a fork, so a child can wait in
    # malloc() for a thread that it does not have.
    run_program(compile_program(Path("fork_facts.c"), directory, "undefined"), fact)


def in_child(call: Callable[[], object]) -> int:
    """How the child ended that made the call: 0, 1 if it raised, or minus the signal of its alarm."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(CHILD_SECONDS)
        try:
            call()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fork_while_held(lock: Any, call: Callable[[], object]) -> int:
    """Forks while another thread holds the lock."""
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        return in_child(call)
    finally:
        over.set()
        thread.join()


def test_a_child_opens_a_context_while_a_thread_does() -> None:
    def use() -> None:
        with emucxl.Context("virtual") as context:
            context.add_tier("a", 1 << 20).alloc(10).write(b"x")
            context.add_tier("s", 1 << 20, emucxl.Shm())

    stopping = threading.Event()

    def repeat() -> None:
        while not stopping.is_set():
            use()

    threads = [threading.Thread(target=repeat) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert [in_child(use) for _ in range(30)] == [0] * 30
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def test_the_locks_of_objects_are_free_in_a_child(tmp_path: Path) -> None:
    with emucxl.Context("virtual") as context, Pool.create(tmp_path / "pool", 4 << 20) as pool:
        queue, engine = Queue(context.add_tier("a", 1 << 20)), emucxl.CopyEngine(context)
        assert fork_while_held(pool._cell._lock, pool.close) == 0
        assert fork_while_held(engine._lock, engine.close) == 0
        assert fork_while_held(queue._lock, queue.close) in (0, 1)  # its buffers are the parent's
        assert fork_while_held(context._lock, lambda: context.add_tier("b", 1)) == 1  # the context is, too
        engine.close()
        queue.close()


def test_the_locks_of_modules_are_free_in_a_child() -> None:
    assert fork_while_held(compat._nodes.lock, lambda: (compat.emucxl_init(), compat.emucxl_exit())) == 0
    assert fork_while_held(calibration._lock, calibration._lock.acquire) == 0
