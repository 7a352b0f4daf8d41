"""A decoder runs wholly where its kernels do: shown on a device whose tensors have no values that a host could read."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor

from interlace.models.batch import ForwardBatch
from support.device_ranks import AsOnADevice, Passes, Rank
from support.driver import Driver
from support.tiny_models import FAMILIES, VOCAB_SIZE, make_model
from tokenweave.communicators import NullCommunicator
from tokenweave.execute import run_sequential
from tokenweave.kernels import ReferenceKernels

META = torch.device("meta")
LENGTHS = (1, 17, 40)  # in phi3_longrope's short context, and beyond it
TOTAL = sum(LENGTHS)


@pytest.fixture(scope="module", params=FAMILIES)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp(request.param), request.param)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, VOCAB_SIZE, (n + 2,), generator=generator).tolist() for n in LENGTHS]


def all_kinds_of_passes(passes: Passes, split: int | None) -> list[Tensor]:
    """Prefill of three sequences with few logits wanted, none and all; then the decoding of one token of each."""
    logits = []
    for wanted in (range(0, TOTAL, 7), (), range(TOTAL)):
        driver = Driver(passes, prompts(), prompt_lens=LENGTHS)  # type: ignore[arg-type]
        logits.append(driver.logits(list(enumerate(LENGTHS)), wanted, split))
    for decoding_split in (None, 1):
        next_tokens = [(s, 1) for s in range(len(LENGTHS))]
        logits.append(driver.logits(next_tokens, range(len(LENGTHS)), split and decoding_split))
    return logits


@pytest.mark.parametrize(
    ("split", "tp"), [(30, 2), *(pytest.param(split, 1, marks=pytest.mark.slow) for split in (None, 30))]
)
def test_a_pass_leaves_nothing_on_the_host_and_reads_nothing_back(
    directory: Path, split: int | None, tp: int
) -> None:
    passes = Passes(directory, *(ReferenceKernels(device="meta") for _ in range(tp)))
    first = Driver(passes, prompts())  # type: ignore[arg-type]
    first.logits([(0, 1)], [0])  # brings over what is kept from pass to pass
    for rank in passes.ranks:
        rank.is_watched = True
    for logits, rows in zip(all_kinds_of_passes(passes, split), (9, 0, TOTAL, 3, 3), strict=True):
        assert (logits.device, logits.shape) == (META, (rows, VOCAB_SIZE))


@pytest.mark.parametrize("split", [None, 30])
def test_the_ways_that_are_for_devices_give_the_logits_of_the_cpu(directory: Path, split: int | None) -> None:
    found, expected = (
        all_kinds_of_passes(Passes(directory, kernels), split)
        for kernels in (AsOnADevice(), ReferenceKernels())
    )
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Rank:
    directory = make_model(tmp_path_factory.mktemp("llama"))
    return Rank(directory, NullCommunicator(kernels=ReferenceKernels(device="meta")))


def test_what_a_lane_handed_on_lives_until_its_reader_has_been_waited_for(llama: Rank) -> None:
    """Streams: the memory of a tensor that nobody holds is given away although another stream still reads it."""
    forward = llama.forward(ForwardBatch.prefill(20, VOCAB_SIZE))
    (part,) = forward.parts
    handed: list[weakref.ref[Tensor]] = []

    def look(step: object, start: float, end: float) -> None:
        if not handed or handed[-1]() is not part.hidden:
            handed.append(weakref.ref(part.hidden))
        alive = [each() is not None for each in handed]
        assert all(alive[-2:]), f"after {step} the tensor that it read is gone"
        assert not any(alive[:-2]), f"after {step} more is kept than what it read"

    with torch.inference_mode():
        run_sequential(forward.plan, forward.handlers, look)
    assert len(handed) == 2 + 4 * llama.decoder.config.num_layers


def test_the_residual_of_all_rows_outlives_the_choice_of_the_wanted_ones(llama: Rank) -> None:
    forward = llama.forward(ForwardBatch.prefill(20, VOCAB_SIZE))
    (part,) = forward.parts
    seen: list[weakref.ref[Tensor]] = []

    def look(step: object, start: float, end: float) -> None:
        if not seen or seen[-1]() is not part.residual:
            seen.append(weakref.ref(part.residual))

    with torch.inference_mode():
        run_sequential(forward.plan, forward.handlers, look)
    kept = [each() for each in seen]
    assert [None if each is None else len(each) for each in kept] == [20, 1]


def test_weights_norms_rotations_and_the_cache_are_on_the_device(llama: Rank) -> None:
    decoder = llama.decoder
    weights = [norm for each in decoder.norms for norm in each.weights.values()]
    tensors = [llama.cache, decoder.embed.data, decoder.rotations[0].table(10), *weights]
    assert {tensor.device for tensor in tensors} == {META}
