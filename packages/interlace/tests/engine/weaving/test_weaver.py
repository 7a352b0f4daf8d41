"""The weaver decides; the tokens stay what they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from interlace import LLM, SamplingParams
from interlace.engine.config import EngineConfig
from interlace.engine.ranks.group import RankGroup
from interlace.engine.ranks.launch import start
from interlace.engine.weaving.this_machine import table_directory, table_key
from interlace.engine.weaving.weaver import Weaver
from interlace.models.batch import ForwardBatch
from support.tiny_models import make_model
from support.wave_tables import linear_table, mixed_table
from tokenweave.cost import CostModel, LinkSpeed
from tokenweave.geometry import BatchGeometry
from tokenweave.plan import plan_forward
from tokenweave.simulate import simulate
from tokenweave.split import Choice, middle

PROMPTS = [list(range(5, 5 + n)) for n in (1, 23, 60)]
SLOW_LINK = "100MB/s,5us"
COSTS = CostModel(linear_table(), LinkSpeed(2e8, 5e-6), (0,) * 30)
ALIGNMENT = 24


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No table of this machine, and no peaks that depend on what else runs on it."""
    monkeypatch.setenv("INTERLACE_CACHE", str(tmp_path))
    monkeypatch.setattr("tokenweave.native.measure_limit", lambda limit, threads, seconds: 20.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), "llama_9_heads")


@pytest.fixture(scope="module")
def expected(model: Path) -> list[tuple[int, ...]]:
    return tokens(model, tp=1)


@pytest.fixture
def linked(model: Path) -> Iterator[RankGroup]:
    config = EngineConfig(
        str(model), tp=2, communicator="thread", dtype="float32", num_kv_blocks=32, threads=1, link=SLOW_LINK
    )
    group = start(config)
    yield group
    group.close()


def tokens(model: Path, **options: object) -> list[tuple[int, ...]]:
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    options = {"dtype": "float32", "num_kv_blocks": 64, "threads": 1} | options
    with LLM(str(model), **options) as llm:  # type: ignore[arg-type]
        return [tuple(output.token_ids) for output in llm.generate(PROMPTS, params)]


def batch_of(chunks: list[tuple[int, int]]) -> ForwardBatch:
    """Sequences with (new tokens, keys) each; what they hold does not matter."""
    ends = np.cumsum([0] + [new for new, _ in chunks]).astype(np.int32)
    rows = torch.zeros(int(ends[-1]), dtype=torch.int32)
    lengths = torch.tensor([keys for _, keys in chunks], dtype=torch.int32)
    starts = torch.from_numpy(ends)
    return ForwardBatch(rows, rows, rows, starts, lengths, rows[None], starts[1:] - 1, lengths)


@pytest.mark.parametrize(
    ("weave", "communicator", "link"),
    [
        ("never", "thread", None),
        ("always", "thread", None),
        ("auto", "thread", None),
        ("auto", "thread", SLOW_LINK),
        ("always", "shm", None),
        pytest.param("never", "shm", None, marks=pytest.mark.slow),
        pytest.param("auto", "shm", None, marks=pytest.mark.slow),
        pytest.param("auto", "shm", SLOW_LINK, marks=pytest.mark.slow),
    ],
)
def test_greedy_tokens_do_not_depend_on_weaving(
    model: Path, expected: list[tuple[int, ...]], weave: str, communicator: str, link: str | None
) -> None:
    assert tokens(model, tp=2, communicator=communicator, weave=weave, link=link) == expected


def test_a_slow_link_is_woven_around_and_every_rank_runs_the_split(linked: RankGroup) -> None:
    batch = ForwardBatch.prefill(200, linked.model_config.vocab_size)
    split = linked.weaver.split(batch)
    assert split is not None
    assert split % ALIGNMENT == 0
    woven = linked.execute(batch).clone()
    linked.weaver = Weaver("never", ALIGNMENT, shared_core=True)
    assert torch.equal(linked.execute(batch), woven)


def test_a_split_that_the_batch_brings_is_kept(linked: RankGroup) -> None:
    plans: list[int | None] = []
    linked.runner.observe = lambda step, start, end: plans.append(step.part)
    linked.weaver = Weaver("never", ALIGNMENT, shared_core=True)
    batch = ForwardBatch.prefill(40, linked.model_config.vocab_size)
    linked.execute(ForwardBatch(**{**batch.__dict__, "split": 7}))
    assert 1 in plans


def test_a_measured_table_is_found_and_used_without_a_word(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from interlace.engine.ranks.connect import kernels_for
    from interlace.models.sources import load_model

    config = EngineConfig(
        str(model), tp=2, communicator="thread", dtype="float32", num_kv_blocks=32, threads=1, link=SLOW_LINK
    )
    key = table_key(load_model(str(model)).config, 2, kernels_for(config, 2), torch.float32)
    table = linear_table()
    type(table)(**{**table.__dict__, "key": key}).save(table_directory())
    group = start(config)
    try:
        assert group.weaver.costs is not None
        assert group.weaver.costs.table.is_measured
        assert not caplog.records
    finally:
        group.close()


def test_a_table_of_another_instruction_set_is_told_and_not_used(
    model: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interlace.engine.ranks.connect import kernels_for
    from interlace.models.sources import load_model

    config = EngineConfig(
        str(model), tp=2, communicator="thread", dtype="float32", num_kv_blocks=32, threads=1, link=SLOW_LINK
    )
    monkeypatch.setenv("TOKENWEAVE_ISA", "amx-emulated")
    key = table_key(load_model(str(model)).config, 2, kernels_for(config, 2), torch.float32)
    replace(linear_table(), key=key).save(table_directory())
    monkeypatch.setenv("TOKENWEAVE_ISA", "baseline")
    group = start(config)
    try:
        assert group.weaver.costs is not None
        assert not group.weaver.costs.table.is_measured
    finally:
        group.close()
    (record,) = caplog.records
    assert "measured with native amx-emulated kernels" in record.getMessage()
    assert "these are native baseline" in record.getMessage()


def test_never_always_and_auto_without_prices() -> None:
    batch = ForwardBatch.prefill(1000, 100)
    assert Weaver("never", ALIGNMENT, shared_core=True).split(batch) is None
    assert Weaver("always", ALIGNMENT, shared_core=True).split(batch) == middle(1000, ALIGNMENT)
    assert Weaver("auto", ALIGNMENT, shared_core=True).split(batch) is None
    assert Weaver("always", ALIGNMENT, shared_core=True).split(ForwardBatch.prefill(1, 100)) is None


@pytest.mark.parametrize(("tp", "weave"), [(1, "always"), (1, "auto")])
def test_a_single_rank_never_weaves(model: Path, tp: int, weave: str) -> None:
    config = EngineConfig(str(model), tp=tp, dtype="float32", num_kv_blocks=32, threads=1, weave=weave)
    group = start(config)
    try:
        assert group.weaver.mode == "never"
    finally:
        group.close()


def test_where_transfers_need_the_core_that_computes_nothing_is_woven(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    config = EngineConfig(
        str(model), tp=2, communicator="thread", dtype="float32", num_kv_blocks=32, threads=1
    )
    group = start(config)
    try:
        assert group.weaver.mode == "never"
    finally:
        group.close()


def test_the_same_batches_get_the_same_splits() -> None:
    batches = [ForwardBatch.prefill(n, 100) for n in (640, 1100, 1101, 2048, 700, 640, 1100)]
    one, other = (Weaver("auto", ALIGNMENT, COSTS, shared_core=True) for _ in range(2))
    splits = [one.split(batch) for batch in batches]
    assert splits == [other.split(batch) for batch in batches]
    assert all(split is not None for split in splits)


def test_layers_alike_get_the_splits_that_they_always_got() -> None:
    """Figures from before layers had kinds."""
    weaver = Weaver("auto", ALIGNMENT, COSTS, shared_core=True)
    assert [weaver.choose(BatchGeometry.prefill(n)) for n in (640, 1100, 2048)] == [
        Choice(360, pytest.approx(0.4451971828571426), pytest.approx(0.6600179542857145)),
        Choice(672, pytest.approx(0.80083449), pytest.approx(1.17058329)),
        Choice(1224, pytest.approx(1.6304817085714283), pytest.approx(2.3195636914285718)),
    ]


def test_layers_that_differ_are_priced_each_as_it_is() -> None:
    layers = (0, 1, 2) * 10
    costs = CostModel(mixed_table(), LinkSpeed(2e8, 5e-6), layers)
    choice = Weaver("auto", ALIGNMENT, costs, shared_core=True).choose(BatchGeometry.prefill(1100))
    for split, expected_s in ((None, choice.unsplit_s), (choice.split, choice.predicted_s)):
        plan = plan_forward(len(layers), 1100, split)
        whole = simulate(plan, costs.cost_of(plan, BatchGeometry.prefill(1100)), shared_core=True)
        assert expected_s == pytest.approx(whole.total_s, rel=0.02)
    assert choice.split is not None


def test_a_mixed_batch_is_balanced_by_its_attention_not_by_its_rows() -> None:
    """64 decodes with long contexts first, then a prompt: the first part needs fewer rows for as much time."""
    weaver = Weaver("auto", ALIGNMENT, COSTS, shared_core=True)
    plain = weaver.choose(BatchGeometry.prefill(1000))
    mixed = weaver.choose(batch_of([(1, 60_000)] * 64 + [(936, 936)]).geometry)
    assert plain.split is not None
    assert mixed.split is not None
    assert mixed.split < plain.split


def test_a_known_kind_of_batch_is_priced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weaver = Weaver("auto", ALIGNMENT, COSTS, shared_core=True)
    priced = []
    choose = weaver.choose
    monkeypatch.setattr(weaver, "choose", lambda load: priced.append(load) or choose(load))
    batch = batch_of([(1, 500 + n) for n in range(64)])
    assert len({weaver.split(batch) for _ in range(10)}) == 1
    assert len(priced) == 1


def test_decisions_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interlace.engine.weaving.weaver.MAX_DECISIONS", 3)
    weaver = Weaver("auto", ALIGNMENT, COSTS, shared_core=True)
    for tokens in range(100, 2000, 150):
        weaver.split(ForwardBatch.prefill(tokens, 100))
    assert len(weaver._decisions) <= 3
