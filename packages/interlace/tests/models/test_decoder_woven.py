"""Woven = sequential: the same bits, whatever the split, the family, the number of ranks and the mix of the batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from interlace.engine.config import EngineConfig
from interlace.engine.ranks.group import RankGroup
from interlace.engine.ranks.launch import start
from support.driver import Driver
from support.tiny_models import FAMILIES, VOCAB_SIZE, make_model

LENGTHS = (1, 15, 17, 33)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp(request.param)
    make_model(directory, request.param)
    return directory


@pytest.fixture(scope="module", params=[2, *(pytest.param(tp, marks=pytest.mark.slow) for tp in (1, 3))])
def group(request: pytest.FixtureRequest, model: Path) -> Iterator[RankGroup]:
    communicator = "thread" if request.param > 1 else "null"
    config = EngineConfig(
        str(model),
        tp=request.param,
        communicator=communicator,
        dtype="float32",
        num_kv_blocks=32,
        threads=1,
        weave="never",
    )
    group = start(config)
    yield group
    group.close()


def prompts(lengths: Sequence[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(len(lengths))
    return [torch.randint(0, VOCAB_SIZE, (n,), generator=generator).tolist() for n in lengths]


def passes(
    group: RankGroup, lengths: Sequence[int], cuts: Sequence[int], splits: Sequence[float]
) -> list[Tensor]:
    """Logits of each prompt, whose first `cuts[s]` tokens go in one pass and the rest in another.

    `splits` places each pass's split, as a share of its tokens; a negative one: not woven.
    """
    driver = Driver(group, prompts(lengths))
    parts: list[list[Tensor]] = [[] for _ in lengths]
    rest = [n - cut for n, cut in zip(lengths, cuts, strict=True)]
    for chunk, place in zip((cuts, rest), splits, strict=True):
        chunks = [(s, n) for s, n in enumerate(chunk) if n]
        total = sum(n for _, n in chunks)
        split = max(1, min(total - 1, round(place * total))) if place >= 0 and total > 1 else None
        if chunks:
            for (s, _), logits in zip(chunks, driver.run(chunks, split), strict=True):
                parts[s].append(logits.clone())
    return [torch.cat(part) for part in parts]


def test_every_split_of_a_mixed_batch_gives_the_bits_of_the_sequential_pass(group: RankGroup) -> None:
    """From 1 to T - 1: at sequence ends, between them, and through the middle of a prompt."""
    expected = Driver(group, prompts(LENGTHS)).run(list(enumerate(LENGTHS)))
    total = sum(LENGTHS)
    for split in {1, 2, 15, 16, 17, 20, 33, 34, 50, total - 2, total - 1}:
        woven = Driver(group, prompts(LENGTHS)).run(list(enumerate(LENGTHS)), split)
        for got, wanted in zip(woven, expected, strict=True):
            assert torch.equal(got, wanted), f"split at {split} of {total}"


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_prefill_chunks_and_decodes_together_can_be_split_anywhere(
    group: RankGroup, data: st.DataObject
) -> None:
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    cuts = [data.draw(st.integers(0, n)) for n in lengths]
    splits = [data.draw(st.floats(0, 1)) for _ in range(2)]
    expected = passes(group, lengths, cuts, [-1, -1])
    for got, wanted in zip(passes(group, lengths, cuts, splits), expected, strict=True):
        assert torch.equal(got, wanted)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_few_wanted_rows_have_the_bits_that_they_have_among_all(
    group: RankGroup, data: st.DataObject
) -> None:
    """The last layer then runs on them alone, in each part of a split batch or in one; the keys are those of all."""
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    total = sum(lengths)
    wanted = sorted(data.draw(st.sets(st.integers(0, total - 1), max_size=total // 2)))
    split = data.draw(st.one_of(st.none(), st.integers(1, total - 1))) if total > 1 else None
    next_tokens = [(s, 1) for s in range(len(lengths))]
    every, few = (Driver(group, prompts([n + 1 for n in lengths])) for _ in range(2))
    expected = torch.cat(every.run(list(enumerate(lengths)))).clone()
    then = torch.cat(every.run(next_tokens)).clone()
    assert torch.equal(few.logits(list(enumerate(lengths)), wanted, split), expected[wanted])
    assert torch.equal(torch.cat(few.run(next_tokens)), then)
