"""Weights in a tier: the bits of weights in local memory, two layers of it, and errors that name the tier."""

from __future__ import annotations

import weakref
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from emucxl.timing import Timing
from interlace import LLM, SamplingParams
from interlace.cache.kv_tier import KvTierSpec
from interlace.engine.config import EngineConfig
from interlace.engine.output import RequestOutput
from interlace.engine.ranks.runner import Runner
from interlace.engine.ranks.weights_tier import WeightsTier
from interlace.errors import EngineError
from interlace.models.decoder import Decoder
from interlace.models.layer_loader import LayerLoader
from interlace.models.layers import Layer
from interlace.models.shard import Shard
from interlace.models.sources import load_model
from support.tiny_models import FAMILIES, VOCAB_SIZE, make_gguf, make_model
from tokenweave.communicators import NullCommunicator
from tokenweave.kernels import Kernels, make_kernels
from tokenweave.plan import WEIGHT_ROOMS

NUM_LAYERS = 5
PROMPTS = [[(7 * i) % VOCAB_SIZE for i in range(70)], [(11 * i) % VOCAB_SIZE for i in range(40)]]
PARAMS = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=2)
TIER = "dram:16MiB"
ONE_OF_EACH = sorted({model_type: name for name, (model_type, _) in reversed(FAMILIES.items())}.values())
FAST = ("llama", "mixtral")


def open_llm(model: Path, **options: Any) -> LLM:
    options = {"dtype": "float32", "threads": 1, "num_kv_blocks": 16, "max_model_len": 120, **options}
    return LLM(str(model), **options)


def answers(model: Path, **options: Any) -> list[Any]:
    """Tokens and logprobs: of both prompts together, and of the first one again."""
    with open_llm(model, **options) as llm:
        return bits([*llm.generate(PROMPTS, PARAMS), *llm.generate(PROMPTS[:1], PARAMS)])


def bits(outputs: list[RequestOutput]) -> list[Any]:
    return [(output.token_ids, output.outputs[0].logprobs) for output in outputs]


def runner_of(llm: LLM) -> Runner:
    runner = llm._ranks.runner  # type: ignore[attr-defined]
    assert isinstance(runner, Runner)
    return runner


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), num_hidden_layers=NUM_LAYERS)


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in ONE_OF_EACH],
)
def test_weights_from_a_tier_give_the_bits_of_weights_in_local_memory(family: str, tmp_path: Path) -> None:
    _, settings = FAMILIES[family]
    types = settings.get("layer_types", [])  # one for each layer
    changes = {"layer_types": (types * NUM_LAYERS)[:NUM_LAYERS]} if types else {}
    model = make_model(tmp_path, family, num_hidden_layers=NUM_LAYERS, **changes)
    assert answers(model, weights_tier=TIER) == answers(model)


@pytest.mark.parametrize(
    "options",
    [
        {"executor": "sequential"},
        {"kernels": "reference"},
        {"dtype": "bfloat16", "weights_tier": "cxl:16MiB@cxl-direct"},
        {"quantize": "int4"},
        {"tp": 2, "weave": "always", "communicator": "thread"},
        {"tp": 2, "communicator": "thread", "num_kv_blocks": 8, "kv_tiers": ["dram:4MiB"]},
        pytest.param({"tp": 2, "communicator": "shm", "weave": "always"}, marks=pytest.mark.slow),
        pytest.param({"replay": False, "prefix_cache": False}, marks=pytest.mark.slow),
        pytest.param({"max_num_batched_tokens": 64, "kv_tiers": ["dram:4MiB"]}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_executor_gives_the_same_bits(options: dict[str, Any], llama: Path) -> None:
    options = {"weights_tier": TIER, **options}
    assert answers(llama, **options) == answers(llama, **{**options, "weights_tier": None})


@pytest.mark.parametrize("num_layers", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_few_layers_stay_where_they_are(num_layers: int, tmp_path: Path) -> None:
    model = make_model(tmp_path, num_hidden_layers=num_layers)
    assert answers(model, weights_tier=TIER) == answers(model)


def test_layers_of_different_sizes_and_formats_are_fetched_as_they_were_packed(tmp_path: Path) -> None:
    kernels = make_kernels("native", threads=1)
    make_gguf(tmp_path / "mixed.gguf", "Q8_0", formats={"v": "Q6_K", "down": "Q4_K"}, biases=("q", "o"))
    make_gguf(tmp_path / "experts.gguf", "Q4_0", family="mixtral")
    make_model(tmp_path / "dense")
    layers = [
        layer
        for name in ("mixed.gguf", "dense", "experts.gguf")
        for layer in packed(tmp_path / name, kernels)
    ]
    tier = WeightsTier(KvTierSpec.parse(TIER), 2 * len(layers), timeout_s=60.0)
    with closing(tier):
        placed = tier.keep(iter([*layers, *layers]))
        for at in (*range(len(placed)), *range(len(placed))):
            tier.fetch(at)
            for own, original in zip(placed[at].matrices, layers[at % len(layers)].matrices, strict=True):
                x = torch.linspace(-1, 1, 3 * own.k).view(3, own.k)
                assert torch.equal(kernels.linear(x, own), kernels.linear(x, original))


def packed(model: Path, kernels: Kernels) -> tuple[Layer, ...]:
    loaded = load_model(str(model), quiet=True)
    shard = Shard.of(loaded.config, 0, 1)
    decoder = Decoder(loaded.weights, shard, kernels, NullCommunicator(), torch.float32, 64, "stored")
    return decoder.layers


def test_a_layer_has_the_same_addresses_in_every_pass_and_a_pass_fetches_each_layer_once(llama: Path) -> None:
    with open_llm(llama, weights_tier=TIER, prefix_cache=False) as llm:
        runner = runner_of(llm)
        tier, layers = runner.weights_tier, runner.decoder.layers
        assert tier is not None
        rooms = [layer.qkv.data.data_ptr() for layer in layers]
        assert rooms == [rooms[at % WEIGHT_ROOMS] for at in range(NUM_LAYERS)]
        assert len(set(rooms)) == WEIGHT_ROOMS
        llm.generate(PROMPTS[:1], PARAMS)
        before_bytes = tier._tier.stats().read_bytes
        llm.generate(PROMPTS[:1], replace(PARAMS, max_tokens=4))
        for layer in range(WEIGHT_ROOMS):
            tier.fetch(layer)
        assert tier.pass_bytes == tier.size_bytes
        assert tier._tier.stats().read_bytes - before_bytes == 4 * tier.size_bytes
        assert runner.replayer is not None
        assert runner.replayer.num_replayed == 0


def test_ranks_tell_what_is_local_and_what_is_in_the_tier(llama: Path) -> None:
    with open_llm(llama) as llm:
        (local_bytes,) = llm.describe()["weights_per_rank_bytes"]  # type: ignore[misc]
        assert llm.describe()["weights_tier_per_rank_bytes"] == [0]
    with open_llm(llama, weights_tier=TIER) as llm:
        (kept_bytes,) = llm.describe()["weights_per_rank_bytes"]  # type: ignore[misc]
        (tier_bytes,) = llm.describe()["weights_tier_per_rank_bytes"]  # type: ignore[misc]
        assert any(
            f"{tier_bytes:,} bytes of which each pass fetches" in notice for notice in runner_of(llm).notices
        )
    assert kept_bytes == local_bytes - tier_bytes + WEIGHT_ROOMS * tier_bytes // NUM_LAYERS


def test_no_two_layers_are_in_local_memory_while_a_model_is_loaded(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[list[weakref.ref[torch.Tensor]]] = []
    load = LayerLoader._layer

    def counted(loader: LayerLoader, index: int) -> Layer:
        assert not [data for layer in loaded for data in layer if data() is not None]
        layer = load(loader, index)
        loaded.append([weakref.ref(matrix.data) for matrix in layer.matrices])
        return layer

    monkeypatch.setattr(LayerLoader, "_layer", counted)
    open_llm(llama, weights_tier=TIER).close()
    assert len(loaded) == NUM_LAYERS


def test_a_tier_that_is_too_small_is_refused_before_a_layer_is_read(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(LayerLoader, "_layer")
    expected = r"the weights tier 'dram:300KiB' has 307,200 bytes for this rank: expected at least 675,840"
    with pytest.raises(EngineError, match=expected):
        open_llm(llama, weights_tier="dram:300KiB")


def test_a_layer_that_finds_no_room_is_named(llama: Path) -> None:
    with open_llm(llama) as llm:
        tier = WeightsTier(KvTierSpec.parse("dram:300KiB"), NUM_LAYERS, timeout_s=60.0)
        expected = r"'dram:300KiB' has no room for layer 2 of 5, 143,360 bytes on this rank; .* take 716,800"
        with pytest.raises(EngineError, match=expected):
            tier.keep(iter(runner_of(llm).decoder.layers))


def test_a_tier_that_is_modelled_as_too_slow_is_refused_before_anything_waits_for_it(llama: Path) -> None:
    expected = (
        r"'cxl:16MiB@0\.001GB/s,1us' is modelled to give a layer of .* expected at most timeout_s=0\.05"
    )
    with pytest.raises(EngineError, match=expected):
        open_llm(llama, weights_tier="cxl:16MiB@0.001GB/s,1us", timeout_s=0.05)


def stalling(layers: list[Layer], timing: Timing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has a tier of `timing`, which is too slow, keep `layers`."""
    monkeypatch.setattr(WeightsTier, "_check_speed", lambda tier, size_bytes: None)
    spec = replace(KvTierSpec.parse("cxl:16MiB"), timing=timing)
    tier = WeightsTier(spec, len(layers), timeout_s=0.02)
    tier.keep(iter(layers))


@pytest.mark.parametrize(
    ("timing", "verb"),
    [
        (Timing(read_bandwidth_gbps=0.001), "give layer 0, .* bytes,"),
        (Timing(write_bandwidth_gbps=0.001), "take layer 0, .* bytes,"),
    ],
)
def test_a_tier_that_stalls_is_named_once_the_time_is_up(
    timing: Timing, verb: str, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_llm(llama) as llm:
        layers = [*runner_of(llm).decoder.layers]
        with pytest.raises(EngineError, match=rf"'cxl:16MiB' did not {verb} in timeout_s=0\.02"):
            stalling(layers, timing, monkeypatch)


@pytest.mark.parametrize(
    "options",
    [
        {"executor": "lanes"},
        {"executor": "sequential"},
        {"tp": 2, "communicator": "thread", "weave": "always"},
    ],
    ids=str,
)
def test_a_layer_that_cannot_be_read_ends_the_pass_with_an_error_that_names_the_tier(
    options: dict[str, Any], llama: Path
) -> None:
    with open_llm(llama, weights_tier=TIER, **options) as llm:
        tier = runner_of(llm).weights_tier
        assert tier is not None
        buffer = tier._buffers[3]
        assert buffer is not None
        tier._tier.poison(buffer.address, 64)
        with pytest.raises(EngineError, match=r"'dram:16MiB' did not give layer 3"):
            llm.generate(PROMPTS[:1], PARAMS)


def test_a_tier_of_weights_is_for_cpus_and_shares_no_device() -> None:
    with pytest.raises(EngineError, match=r"^weights_tier='cxl:1GB': expected None with device='cuda'"):
        EngineConfig("smollm2", weights_tier="cxl:1GB", device="cuda")
    with pytest.raises(
        EngineError, match=r"^weights_tier=.*: expected a device that no tier of kv_tiers has"
    ):
        EngineConfig("smollm2", weights_tier="dax:/dev/dax0.0", kv_tiers=["dax:/dev/dax0.0:1GB"])
