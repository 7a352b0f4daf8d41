"""The dtype that `auto` is: measured where bfloat16 is multiplied, once, and the same on all ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from interlace import LLM, SamplingParams
from interlace.engine.dtypes import choice, probe
from interlace.engine.dtypes.products import EXAMPLE, Comparison, Products, ProductTimes
from interlace.models.sources import load_model
from support.tiny_models import make_model
from tokenweave.kernels import Kernels, NativeKernels, ReferenceKernels

SLOW, FAST = ProductTimes(1e-11, 2e-10, 3e-10), ProductTimes(5e-12, 1e-10, 2e-10)


class Measurements:
    """Stands for the probe: says which dtype is faster, and remembers for what."""

    def __init__(self) -> None:
        self.faster = "bfloat16"
        self.made: list[Products] = []

    def __call__(self, kernels: Kernels, products: Products) -> Comparison:
        self.made.append(products)
        return Comparison(products, *((SLOW, FAST) if self.faster == "bfloat16" else (FAST, SLOW)))


@pytest.fixture(autouse=True)
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measurements:
    """This machine multiplies bfloat16, whatever it does, and nothing is kept of it yet."""
    found = Measurements()
    monkeypatch.setenv("INTERLACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(probe, "compare", found)
    monkeypatch.setattr(choice, "MULTIPLYING", (NativeKernels().isa, "amx-emulated"))
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model(tmp_path_factory.mktemp("model"), "llama_9_heads"))


@pytest.mark.parametrize("faster", ["float32", "bfloat16"])
def test_auto_is_what_was_measured_to_be_faster(measured: Measurements, faster: str) -> None:
    measured.faster = faster
    assert choice.resolve("auto", NativeKernels(), EXAMPLE) is getattr(torch, faster)


def test_it_is_measured_once_for_an_instruction_set_and_a_number_of_threads(measured: Measurements) -> None:
    for _ in range(3):
        assert choice.resolve("auto", NativeKernels(), EXAMPLE) is torch.bfloat16
    assert len(measured.made) == 1
    measured.faster = "float32"
    assert choice.resolve("auto", NativeKernels(1, "amx-emulated"), EXAMPLE) is torch.float32
    assert choice.resolve("auto", NativeKernels(2), EXAMPLE) is torch.float32
    assert choice.resolve("auto", NativeKernels(), EXAMPLE) is torch.bfloat16  # it stays what it was
    assert len(measured.made) == 3


def test_nothing_is_measured_where_bfloat16_is_not_multiplied(
    measured: Measurements, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(probe, "compare", measured)
    for kernels in (NativeKernels(1, "baseline"), NativeKernels(1, "amx-emulated"), ReferenceKernels()):
        assert choice.resolve("auto", kernels, EXAMPLE) is torch.float32
    assert not measured.made


def test_beside_weights_in_blocks_it_is_bfloat16_unmeasured(measured: Measurements) -> None:
    """Their products take as long in both, so a measurement would only tell how busy the machine was."""
    measured.faster = "float32"
    in_blocks = replace(EXAMPLE, blocks="q4_1")
    assert choice.resolve("auto", NativeKernels(), in_blocks) is torch.bfloat16
    assert choice.resolve("auto", ReferenceKernels(), in_blocks) is torch.float32
    assert not measured.made


def test_a_dtype_with_a_name_is_taken_unmeasured(measured: Measurements) -> None:
    for name in ("float32", "bfloat16"):
        assert choice.resolve(name, NativeKernels(), EXAMPLE) is getattr(torch, name)
    assert not measured.made


@pytest.mark.parametrize("faster", ["float32", "bfloat16"])
def test_rank_0_decides_for_all_ranks(model: str, measured: Measurements, faster: str) -> None:
    measured.faster = faster
    with LLM(model, tp=2, communicator="thread", threads=1, num_kv_blocks=32) as llm:
        described = llm.describe()
        assert len(llm.generate(["a"], SamplingParams(max_tokens=2))) == 1
    assert described["dtype"] == faster
    (products,) = measured.made
    assert products.matrices[0] == (8 * 16, 144)  # four of nine heads, with the two KV heads that they read


@pytest.mark.slow
def test_a_process_that_would_choose_otherwise_follows_rank_0(model: str, measured: Measurements) -> None:
    """Only this process was told that the machine multiplies bfloat16."""
    with LLM(model, tp=2, communicator="shm", threads=1, num_kv_blocks=32) as llm:
        assert len(llm.generate(["a"], SamplingParams(max_tokens=2))) == 1
        assert {rank["dtype"] for rank in llm.describe()["ranks"]} == {"bfloat16"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("quantize", "blocks"), [("none", None), ("stored", None), ("int8", "q8_0"), ("int4", "q4_0")]
)
def test_the_format_of_weights_in_blocks_is_known(model: str, quantize: str, blocks: str | None) -> None:
    assert choice.blocks_of(quantize, load_model(model).weights) == blocks
