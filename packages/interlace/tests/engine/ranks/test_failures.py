"""When a rank, the parent or the user ends a job in the middle: an error that says who, and nothing left behind."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from interlace import LLM, SamplingParams
from interlace.engine.ranks import launch
from interlace.engine.ranks.processes import RankSpec
from interlace.errors import EngineError, RankFailed, TokenizerError
from support.patience import PATIENCE_S, wait_until
from support.tiny_models import make_model

ENDLESS = SamplingParams(temperature=0.0, max_tokens=100_000, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(
        tmp_path_factory.mktemp("model"), "llama", max_position_embeddings=200_000, num_hidden_layers=4
    )


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    before = shared_names()
    yield
    # What other programs of this machine put there meanwhile goes, too.
    wait_until(lambda: shared_names() <= before, "the end of what the test left in /dev/shm")


def shared_names() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if "interlace" in name or "torch" in name}


def rank_pids(llm: LLM) -> list[int]:
    ranks = llm.describe()["ranks"]
    assert isinstance(ranks, list)
    return [rank["pid"] for rank in ranks]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ")[1][0] not in "ZX"
    except FileNotFoundError:
        return False


def threads() -> int:
    """How many run Python code or native code of ours, once those of what is unreachable have ended."""
    gc.collect()
    return len(os.listdir("/proc/self/task"))


def wait_until_gone(pids: list[int]) -> None:
    wait_until(lambda: not any(map(is_alive, pids)), f"the end of the processes {pids}")


@pytest.mark.parametrize(
    ("communicator", "victim"),
    [
        ("shm", 1),
        ("torch", 2),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (("shm", 2), ("torch", 1))),
    ],
)
def test_a_killed_rank_ends_the_job_with_its_name(model: Path, communicator: str, victim: int) -> None:
    llm = LLM(str(model), tp=3, communicator=communicator, num_kv_blocks=10_000)
    pids = rank_pids(llm)
    chunks = llm.stream("Once upon a time", ENDLESS)
    next(chunks)
    os.kill(pids[victim], signal.SIGKILL)
    with pytest.raises(RankFailed, match=rf"rank {victim} .*was killed by SIGKILL") as caught:
        deque(chunks, maxlen=0)
    assert caught.value.rank == victim
    with pytest.raises(RankFailed, match=f"rank {victim}"):  # the same answer to whoever asks next
        llm.generate("again", ENDLESS)
    llm.close()
    wait_until_gone(pids[1:])


def test_a_rank_killed_while_idle_is_noticed_by_the_next_request(model: Path) -> None:
    with LLM(str(model), tp=2, num_kv_blocks=64) as llm:
        pids = rank_pids(llm)
        os.kill(pids[1], signal.SIGKILL)
        wait_until_gone(pids[1:])
        with pytest.raises(RankFailed, match="rank 1 "):
            llm.generate("hello", SamplingParams(max_tokens=4))


def test_a_rank_that_stops_answering_is_named_after_the_timeout(model: Path) -> None:
    with opened_hurried(model) as (llm, timeout_s):
        pids = rank_pids(llm)
        os.kill(pids[1], signal.SIGSTOP)
        with pytest.raises(RankFailed, match=rf"waited {timeout_s:g} s .*rank 1"):
            llm.generate("hello", SamplingParams(max_tokens=4))
    wait_until_gone(pids[1:])


def test_a_start_that_fails_late_leaves_no_thread(model: Path, tmp_path: Path) -> None:
    """The weights are loaded and the executor runs when the tokenizer turns out to be damaged."""
    damaged = shutil.copytree(model, tmp_path / "damaged")
    (damaged / "tokenizer.json").write_text("{")
    with LLM(str(model), num_kv_blocks=4):
        pass  # whatever is started once, is now
    before = threads()
    for _ in range(3):
        with pytest.raises(TokenizerError, match="is damaged"):
            LLM(str(damaged), num_kv_blocks=4)
    assert threads() <= before


@pytest.mark.parametrize("size", [{"num_kv_blocks": 10**12}, {"num_kv_blocks": 10**40}])
def test_a_cache_beyond_all_memory_is_refused_in_words(model: Path, size: dict[str, int]) -> None:
    with pytest.raises(EngineError, match="the system grants no such room: lower num_kv_blocks"):
        LLM(str(model), **size)


def test_a_cache_may_have_all_the_room_there_is(model: Path) -> None:
    with LLM(str(model), kv_cache_gb=1e300, max_model_len=64, max_num_seqs=2) as llm:
        assert llm.describe()["num_kv_blocks"] == 8, "no more than two sequences of 64 tokens can fill"


@contextmanager
def opened_hurried(model: Path) -> Iterator[tuple[LLM, float]]:
    """An LLM of a short timeout; of a longer one where a busy machine's ranks don't even load within that."""
    for timeout_s in (1.0, 10.0, PATIENCE_S):
        try:
            llm = LLM(str(model), tp=2, num_kv_blocks=64, timeout_s=timeout_s)
        except RankFailed as failure:
            if f"waited {timeout_s:g} s" not in str(failure) or timeout_s == PATIENCE_S:
                raise
        else:
            break
    with llm:
        yield llm, timeout_s


def test_a_rank_that_cannot_load_says_why(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = launch._specs

    def misled(*arguments: Any) -> list[RankSpec]:
        first, second = whole(*arguments)
        return [first, replace(second, config={**second.config, "model": "/no/such/model"})]

    monkeypatch.setattr(launch, "_specs", misled)
    with pytest.raises(RankFailed, match=r"rank 1 .*ModelNotFound.*/no/such/model") as caught:
        LLM(str(model), tp=2, num_kv_blocks=64)
    assert caught.value.rank == 1


SCRIPT = """
import json, sys
from interlace import LLM, SamplingParams
llm = LLM(sys.argv[1], tp=2, num_kv_blocks=10_000)
print(json.dumps([rank["pid"] for rank in llm.describe()["ranks"]]), flush=True)
for chunk in llm.stream("Once upon a time", SamplingParams(max_tokens=100_000, ignore_eos=True)):
    print("token", flush=True)
"""


@pytest.fixture
def running_job(model: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A process that generates over two ranks, and the ranks' pids."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(model)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    pids = json.loads(process.stdout.readline())
    assert process.stdout.readline() == "token\n"
    yield process, pids
    process.kill()
    process.communicate()


def test_ranks_end_when_their_parent_is_killed(running_job: tuple[subprocess.Popen[str], list[int]]) -> None:
    process, pids = running_job
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE_S)
    wait_until_gone(pids)


def test_ctrl_c_ends_every_rank(running_job: tuple[subprocess.Popen[str], list[int]]) -> None:
    process, pids = running_job
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to parent and ranks alike
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert "KeyboardInterrupt" in stderr
    wait_until_gone(pids)


def test_ranks_started_together_do_not_disturb_each_other(model: Path) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    with LLM(str(model), tp=2, num_kv_blocks=64) as first, LLM(str(model), tp=2, num_kv_blocks=64) as second:
        tokens = [llm.generate("hello", params)[0].outputs[0].token_ids for llm in (first, second, first)]
    assert tokens[0] == tokens[1] == tokens[2]


@pytest.mark.parametrize("communicator", ["shm", "torch"])
def test_opening_and_closing_leaves_no_descriptor(model: Path, communicator: str) -> None:
    closed = []  # kept: what was closed must not wait for the collector

    def descriptors() -> int:
        with LLM(str(model), tp=2, communicator=communicator, num_kv_blocks=64, link="5GB/s,1us") as llm:
            llm.generate("hello", SamplingParams(max_tokens=2))
        closed.append(llm)
        return len(os.listdir("/proc/self/fd"))

    gc.collect()  # of other tests
    first = descriptors()  # what torch opens once and keeps is there by now
    assert descriptors() <= first


@pytest.mark.parametrize(
    "options", [{}, {"tp": 2}, {"tp": 2, "communicator": "torch"}, {"tp": 2, "communicator": "thread"}]
)
def test_closing_gives_the_memory_back_at_once(model: Path, options: dict[str, Any]) -> None:
    gc.disable()  # whoever opens one model after the other runs no collector between them
    try:
        with LLM(str(model), num_kv_blocks=64, **options) as llm:
            llm.generate("hello", SamplingParams(max_tokens=2))
            runner = llm._ranks.runner  # type: ignore[attr-defined]
            held = [weakref.ref(part) for part in (runner.cache.tensor, runner.decoder, runner.kernels)]
            del runner
        assert [part() for part in held] == [None] * 3
    finally:
        gc.enable()


def test_a_rank_that_dies_before_it_has_joined_over_torch_is_named(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = launch._specs

    def misled(*arguments: Any) -> list[RankSpec]:
        first, second = whole(*arguments)
        return [first, replace(second, config={**second.config, "kernels": "no such kernels"})]

    monkeypatch.setattr(launch, "_specs", misled)
    with pytest.raises(RankFailed, match=r"rank 1 .*failed with") as caught:
        LLM(str(model), tp=2, communicator="torch", num_kv_blocks=64, timeout_s=120)
    assert caught.value.rank == 1
    monkeypatch.undo()
    with LLM(str(model), tp=2, communicator="torch", num_kv_blocks=64) as llm:  # the next start is not spoilt
        assert llm.generate("hello", SamplingParams(max_tokens=2, ignore_eos=True))[0].token_ids
