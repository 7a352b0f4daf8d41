"""The stages of `make gpu` that run the engine and its peers: work, floors, weights, and what is told of figures."""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu.device import StandIn
from benchmarks.gpu.engine import DRY, FULL, QUICK, against_floor, idle
from benchmarks.gpu.families import FamilyErrors
from benchmarks.gpu.families import findings as family_findings
from benchmarks.gpu.findings import StageFile, Verdict, read
from benchmarks.gpu.floors import Floors
from benchmarks.gpu.llama import LLAMA_8B, TINY, PassWork, decode_work, prefill_work
from benchmarks.gpu.peers import Comparison, beside, logits_of
from benchmarks.gpu.plain import PlainLoop, StaticCache
from benchmarks.gpu.stage import StageJob
from benchmarks.gpu.stages import StageOptions
from benchmarks.gpu.weights import RandomWeights
from benchmarks.gpu.woven import FULL as FULL_WOVEN
from benchmarks.gpu.woven import IN_ORDER, ONE, THREADS, Passes, decoding, timed, woven_of
from benchmarks.gpu.woven import findings as woven_findings
from emucxl.bench.harness import Samples
from interlace.models.batch import ForwardBatch
from interlace.models.config import weight_shapes

FLOORS = Floors(bytes_per_s=1e12, flops_per_s=1e15)
IDS = torch.tensor([[3, 14, 15, 92, 65, 35, 8, 9], [79, 3, 23, 84, 62, 64, 33, 83]])
NUM_READ = 5


@pytest.fixture(scope="module")
def weights() -> RandomWeights:
    return RandomWeights(TINY, StandIn())


def test_a_step_reads_every_weight_but_the_embedding_once_and_every_key() -> None:
    matrices = {name: shape for name, shape in weight_shapes(LLAMA_8B).items() if len(shape) == 2}
    values = sum(prod(shape) for name, shape in matrices.items() if name != "embed")
    keys = 8 * 100 * 2 * 32 * 8 * 128  # sequences, tokens, keys and values, layers, heads, dimensions
    assert decode_work(LLAMA_8B, 8, 100, 2).num_bytes == 2 * (values + keys)
    assert decode_work(LLAMA_8B, 1, 0, 2).flops == 2 * values
    assert decode_work(LLAMA_8B, 8, 100, 2, weight_bytes=values).num_bytes == values + 2 * keys


def test_a_prompt_goes_through_all_layers_but_only_its_last_token_through_the_rest_of_the_last() -> None:
    layer = sum(
        prod(shape)
        for name, shape in weight_shapes(TINY).items()
        if name.startswith("layers.0.") and len(shape) > 1
    )
    kept, head = 2 * 2 * 16 * 32, 96 * 32  # k and v; the output head
    pairs = 5 * 6 // 2 + 5  # of the first layer, and of the last token in the last
    products = 5 * (layer + kept) + (layer - kept) + head
    assert prefill_work(TINY, 5, 2).flops == 2 * products + 4 * pairs * 4 * 16


def test_random_weights_are_given_as_views_of_what_was_made(weights: RandomWeights) -> None:
    assert set(weights.names) == set(weight_shapes(TINY))
    for name, shape in weight_shapes(TINY).items():
        assert weights.load(name).shape == shape
        assert weights.load(name).data_ptr() == weights[name].data_ptr()
    joined = weights["layers.1.qkv"]
    assert torch.equal(joined, torch.cat([weights[f"layers.1.{part}"] for part in "qkv"]))
    assert joined.untyped_storage().data_ptr() == weights["layers.1.k"].untyped_storage().data_ptr()
    assert torch.equal(weights.load("embed", range(3, 9), range(2, 7)), weights["embed"][3:9, 2:7])
    assert not torch.equal(weights["layers.0.o"], weights["layers.1.o"])


def all_logits(model: PlainLoop, read: int) -> torch.Tensor:
    """The logits after the first `read` tokens, and after each later one."""
    cache: StaticCache = model.new_cache(len(IDS), IDS.shape[1])
    found = [model.prefill(IDS[:, :read], cache)]
    found += [model.decode(IDS[:, at : at + 1], cache) for at in range(read, IDS.shape[1])]
    return torch.stack(found)


def test_the_plain_loop_gives_in_steps_what_it_gives_at_once(weights: RandomWeights) -> None:
    plain = PlainLoop(weights, StandIn())
    torch.testing.assert_close(all_logits(plain, 2)[3:], all_logits(plain, NUM_READ))


@pytest.mark.slow
def test_the_plain_loop_is_transformers(weights: RandomWeights) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from benchmarks.gpu.transformers_peer import TransformersPeer

    peer = TransformersPeer(weights, StandIn())
    expected = all_logits(peer, NUM_READ)  # type: ignore[arg-type]  # it has the same methods
    torch.testing.assert_close(all_logits(PlainLoop(weights, StandIn()), NUM_READ), expected)
    torch.testing.assert_close(peer.prefill_alone(IDS[:, :NUM_READ]), expected[0])
    own = peer._model.model.layers[0].self_attn.q_proj.weight
    assert own.data_ptr() == weights["layers.0.q"].data_ptr(), "nothing is copied"


class Tracing(StandIn):
    """Traces what is to be compiled, as torch does before it compiles: a whole function, or an error."""

    def compiled(self, function):  # type: ignore[no-untyped-def]
        return torch.compile(function, backend="eager", fullgraph=True)


@pytest.mark.slow
def test_blocks_and_transformers_can_be_compiled_as_a_whole(weights: RandomWeights) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from benchmarks.gpu.transformers_peer import TransformersPeer

    expected = all_logits(PlainLoop(weights, StandIn()), NUM_READ)
    torch.testing.assert_close(all_logits(PlainLoop(weights, Tracing()), NUM_READ), expected)
    peer = TransformersPeer(weights, Tracing(), is_compiled=True)
    torch.testing.assert_close(all_logits(peer, NUM_READ), expected)  # type: ignore[arg-type]


def test_there_is_room_for_every_step_that_is_measured() -> None:
    for shapes in (FULL, QUICK, DRY):
        assert shapes.num_steps >= shapes.steps * (shapes.warm_up + shapes.rounds + 1)
        assert shapes.num_tokens >= max(shapes.batches) * (shapes.prompt + shapes.num_steps)
        assert shapes.num_tokens > max(shapes.prefills)
        assert shapes.prompt + shapes.num_steps <= shapes.config.max_position


def test_figures_are_held_against_the_floor() -> None:
    work = PassWork(num_bytes=8e9, flops=1e9)  # 8 ms of memory
    met = against_floor("decode", Samples((10_000.0,)), FLOORS, work, 4, 0.8)
    assert met.got == "10.00 (10.00-10.00) ms, 400 tokens/s, 80% of the floor (memory)"
    assert (met.target, met.verdict) == (">= 80%", Verdict.MET)
    assert against_floor("decode", Samples((10_001.0,)), FLOORS, work, 4, 0.8).verdict is Verdict.MISSED
    assert against_floor("decode", Samples((1e6,)), FLOORS, work, 4, None).verdict is Verdict.NONE


@pytest.mark.parametrize(
    ("device_us", "verdict"), [(95.1, Verdict.MET), (94.0, Verdict.MISSED), (None, Verdict.NOT_RUN)]
)
def test_the_device_may_be_idle_for_a_twentieth_of_a_step(device_us: float | None, verdict: Verdict) -> None:
    assert idle("host", Samples((100.0,)), device_us).verdict is verdict


def test_the_family_that_is_furthest_off_is_told_for_each_dtype() -> None:
    good, odd = FamilyErrors(1e-6, 0.02, 0.03), FamilyErrors(1e-7, 0.08, 0.03)
    exact, rounded = family_findings({"llama": good, "gemma": odd})
    assert (exact.what, exact.got) == (
        "2 families beside transformers, float32",
        "llama is off by 1.0e-06, no other by more",
    )
    assert rounded.got == "gemma is off by 8.0e-02; transformers in bfloat16 by 3.0e-02"
    assert (exact.verdict, rounded.verdict) == (Verdict.MET, Verdict.MISSED)
    assert list(family_findings({})) == []


def test_sequences_that_decode_have_blocks_of_their_own_behind_the_prompts() -> None:
    batch = decoding(num_seqs=2, num_keys=18, first_block=3, vocab_size=50)
    assert batch.block_tables.tolist() == [[3, 4], [5, 6]]
    assert batch.slots.tolist() == [4 * 16 + 1, 6 * 16 + 1]
    assert (batch.positions.tolist(), batch.seq_lens.tolist()) == ([17, 17], [18, 18])
    assert max(FULL_WOVEN.batches()["decode"].slots.tolist()) < FULL_WOVEN.num_blocks * 16


ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("off", "again_off", "verdict", "told"),
    [
        (1e-6, 1e-6, Verdict.MET, "2 passes replayed, the same bits as on streams"),
        (1e-6, 2e-6, Verdict.MET, "2 passes replayed, other bits than on streams"),
        (0.1, 0.1, Verdict.MISSED, "2 passes replayed, the same bits as on streams"),
    ],
)
def test_woven_passes_are_held_against_whole_ones_and_their_bits_in_graphs_against_those_on_streams(
    off: float, again_off: float, verdict: Verdict, told: str
) -> None:
    found = {"prompt": Passes(ONES, ONES + off, ONES + again_off, num_replayed=2, refusal=None)}
    whole, graphs = woven_findings(ONE, found, {"prompt": ONES}, torch.float32)
    assert (whole.verdict, graphs.got) == (verdict, told)
    (in_order,) = woven_findings(IN_ORDER, found, {"prompt": ONES}, torch.float32)
    assert in_order.verdict is verdict


def test_passes_that_are_not_captured_say_why() -> None:
    found = {"prompt": Passes(ONES, ONES, ONES, num_replayed=0, refusal="ranks are threads")}
    _, graphs = woven_findings(THREADS, found, {"prompt": ONES}, torch.float32)
    assert (graphs.got, graphs.verdict) == ("ranks are threads", Verdict.NOT_RUN)


class Counting:
    """Ranks that count the passes of each kind."""

    def __init__(self) -> None:
        self.passes: Counter[tuple[int, int | None]] = Counter()

    def execute(self, batch: ForwardBatch) -> None:
        self.passes[batch.num_tokens, batch.split] += 1


def test_every_batch_is_timed_whole_and_woven_in_turns(tmp_path: Path) -> None:
    job = StageJob(StageFile(tmp_path / "told"), StageOptions(is_dry_run=True))
    ranks: Any = Counting()
    found = timed(job, ranks, FULL_WOVEN)
    assert list(found) == ["prompt", "decode", "prompt, woven", "decode, woven"]
    kinds = [(2048, None), (64, None), (2048, 1024), (64, 32)]
    assert ranks.passes == dict.fromkeys(kinds, FULL_WOVEN.rounds)


def test_a_batch_is_woven_at_its_middle_or_where_it_was_not_cut_before() -> None:
    prompt = FULL_WOVEN.batches()["prompt"]
    assert (woven_of(prompt).split, woven_of(prompt, later=1).split) == (1024, 1025)


class Untrue(PlainLoop):
    """A peer whose logits are others."""

    def prefill(self, ids: torch.Tensor, cache: StaticCache) -> torch.Tensor:
        return super().prefill(ids, cache) + 1


class Answering:
    """An engine that gives a plain loop's logits."""

    def __init__(self, loop: PlainLoop) -> None:
        self.loop = loop

    def logits(self, ids: list[int]) -> torch.Tensor:
        return logits_of(StandIn(), self.loop, ids)


def comparison_of(weights: RandomWeights, path: Path) -> Comparison:
    job = StageJob(StageFile(path), StageOptions(is_dry_run=True))
    served: Any = Answering(PlainLoop(weights, StandIn()))
    return Comparison(job, DRY, served, {})


def test_a_peer_that_cannot_be_made_or_cannot_run_is_a_row_and_the_others_go_on(
    weights: RandomWeights, tmp_path: Path
) -> None:
    comparison = comparison_of(weights, tmp_path / "told")

    def fail() -> PlainLoop:
        raise RuntimeError("no\n compiler")

    peers = comparison.peers({"odd": fail, "plain loop": lambda: PlainLoop(weights, StandIn())})
    assert list(peers) == ["plain loop"]
    odd, plain = read(tmp_path / "told").findings
    assert (odd.what, odd.got, odd.verdict) == ("odd", "RuntimeError: no compiler", Verdict.NOT_RUN)
    assert plain.got == "off by 0.0e+00"


def test_nothing_is_timed_beside_a_peer_with_other_logits(weights: RandomWeights, tmp_path: Path) -> None:
    with pytest.raises(ArithmeticError, match="untrue's logits beside the engine's is off"):
        comparison_of(weights, tmp_path / "told").peers({"untrue": lambda: Untrue(weights, StandIn())})


def test_peers_are_told_by_how_many_times_as_long_they_take() -> None:
    found = {"ours": Samples((2000.0, 4000.0)), "loop": Samples((3000.0, 6000.0))}
    assert beside("decode", found).got == "3.00 ms; times as long: loop 1.50 (1.50-1.50)"
    assert beside("decode", {"ours": Samples((2000.0,))}).got == "2.00 ms; times as long: nobody"
