"""A forked child has a copy of the parent's engine: it is told so, and the parent goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import traceback
from collections.abc import Callable

import pytest

from interlace import LLM, AsyncLLM, SamplingParams
from interlace.errors import EngineError
from support.engine_fakes import FakeRanks
from support.tiny_models import make_model
from tokenweave import native

PARAMS = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
CHILD_S = 100


def in_child(work: Callable[[], None]) -> None:
    """Run `work` in a forked child and fail when it raises, or hangs."""
    child = os.fork()
    if child == 0:
        signal.alarm(CHILD_S)
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def is_told(call: Callable[[], object]) -> None:
    with pytest.raises(EngineError, match=rf"belongs to process {os.getppid()}.*spawn"):
        call()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model(tmp_path_factory.mktemp("forks") / "tiny", "llama_9_heads"))


@pytest.mark.parametrize("communicator", ["shm", "torch", "thread"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_ranks_serve_the_parent_after_a_child_used_and_dropped_its_copy(
    model: str, communicator: str
) -> None:
    with LLM(model, tp=2, communicator=communicator, num_kv_blocks=8, threads=1) as llm:
        before = llm.generate([[1, 2]], PARAMS)[0].token_ids
        started = llm.stream([1, 2, 3], PARAMS)
        next(started)

        def use() -> None:
            is_told(lambda: llm.generate([[1, 2]], PARAMS))
            is_told(lambda: llm.stream([1, 2], PARAMS))
            is_told(lambda: next(started))
            is_told(llm.describe)
            is_told(lambda: llm._ranks.describe())
            llm._ranks.close()
            llm.close()

        in_child(use)
        assert llm.generate([[1, 2]], PARAMS)[0].token_ids == before
        assert len(list(started)) == 2


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_lock_that_was_held_at_the_fork_does_not_hang_the_child() -> None:
    with LLM("fake", ranks=FakeRanks()) as llm:
        with llm._lock:
            in_child(lambda: is_told(lambda: llm.generate([[1, 2]], PARAMS)))
            in_child(llm.close)
        assert llm.generate([[1, 2]], PARAMS)[0].token_ids


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_an_async_engine_says_so_too() -> None:
    llm = AsyncLLM("fake", ranks=FakeRanks())

    def use() -> None:
        is_told(lambda: asyncio.run(llm.generate([1, 2], PARAMS)))
        is_told(lambda: asyncio.run(llm.describe()))
        llm.close()

    in_child(use)
    assert asyncio.run(llm.generate([1, 2], PARAMS)).token_ids
    llm.close()


@pytest.mark.skipif(native.unavailable_reason() is not None, reason="the native library is not here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_kernels_are_let_go_in_a_child() -> None:
    pool = native.ThreadPool(2)
    in_child(pool.close)
    assert pool.handle
    pool.close()


def test_a_child_may_make_an_engine_of_its_own(model: str) -> None:
    def use() -> None:
        with LLM(model, num_kv_blocks=8, threads=1) as own:
            assert own.generate([[1, 2]], PARAMS)[0].token_ids

    in_child(use)
