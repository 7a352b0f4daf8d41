from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from interlace.engine.engine import end_token_ids
from interlace.engine.output import RequestOutput
from interlace.engine.sampling_params import SamplingParams
from interlace.errors import CacheTooSmall, EngineError, PromptTooLong, RankFailed, RequestError
from interlace.models.batch import ForwardBatch
from support.engine_fakes import (
    EOS,
    VOCAB_SIZE,
    ByteDecoder,
    FakeModelFacts,
    FakeRanks,
    greedy_tokens,
    make_engine,
    run_all,
    run_alone,
)
from tokenweave.sampling.device import DeviceSampled

PROMPT = list(b"hello")


def greedy(**values: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": 12, "ignore_eos": True, **values})


def run(prompt: list[int], params: SamplingParams, **options: Any) -> RequestOutput:
    engine = make_engine(**options)
    engine.add_request("one", prompt, params)
    return run_all(engine)[0]["one"]


def test_max_tokens_ends_with_length() -> None:
    output = run(PROMPT, greedy())
    assert (output.token_ids, output.finish_reason) == (greedy_tokens(PROMPT, 12), "length")


def test_a_device_has_the_next_pass_before_the_host_waits_for_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a request ends with these tokens, and of a prompt that takes several passes."""
    events: list[str] = []

    class Watched(FakeRanks):
        def execute(self, batch: ForwardBatch, sampled: Tensor | None = None) -> Tensor:
            events.append("execute")
            return super().execute(batch, sampled)

    fetch = DeviceSampled.fetch
    monkeypatch.setattr(DeviceSampled, "fetch", lambda self, _: (events.append("fetch"), fetch(self))[1])
    ranks = Watched()
    ranks.device = torch.device("cpu")
    engine = make_engine(ranks, max_num_batched_tokens=64)
    engine.add_request("long", [1] * 100, greedy(max_tokens=3))
    engine.add_request("short", [2] * 20, greedy(max_tokens=1))
    outputs, _ = run_all(engine)
    assert outputs["long"].token_ids == greedy_tokens([1] * 100, 3)
    assert outputs["short"].token_ids == greedy_tokens([2] * 20, 1)
    # Two passes of prompts, of which the first gives no token; then a token each.
    assert events == ["execute", "execute", "execute", "fetch", "execute", "fetch", "fetch"]


def test_the_end_of_the_context_ends_with_length() -> None:
    engine = make_engine(FakeRanks(max_model_len=20))
    engine.add_request("one", PROMPT, greedy(max_tokens=None))
    engine.add_request("two", PROMPT, greedy(max_tokens=100))
    outputs, _ = run_all(engine)
    for output in outputs.values():
        assert (len(output.token_ids), output.finish_reason) == (15, "length")


def test_eos_ends_with_stop_and_leaves_no_text() -> None:
    third = greedy_tokens(PROMPT, 3)[2]
    ranks = FakeRanks()
    ranks.model_config = FakeModelFacts(eos_token_ids=(third,))
    engine = make_engine(ranks)
    engine.add_request("one", PROMPT, greedy(ignore_eos=False))
    engine.add_request("ignoring", PROMPT, greedy())
    outputs, _ = run_all(engine)
    first = greedy_tokens(PROMPT, 12).index(third) + 1
    assert outputs["one"].token_ids == greedy_tokens(PROMPT, first)
    assert outputs["one"].text == ranks.tokenizer.decode(greedy_tokens(PROMPT, first - 1))
    assert (outputs["one"].finish_reason, outputs["one"].outputs[0].stop_reason) == ("stop", None)
    assert outputs["ignoring"].token_ids == greedy_tokens(PROMPT, 12)


@pytest.mark.parametrize("named", [(), (5,), (EOS, 5)])
def test_the_tokenizer_s_end_counts_whatever_the_model_names(named: tuple[int, ...]) -> None:
    ranks = FakeRanks()
    ranks.model_config = FakeModelFacts(eos_token_ids=named)
    params = SamplingParams(temperature=1.0, max_tokens=None, seed=3)
    engine = make_engine(ranks)
    for index in range(8):
        engine.add_request(str(index), [index], params)
    outputs, _ = run_all(engine)
    last = {output.token_ids[-1] for output in outputs.values() if output.finish_reason == "stop"}
    assert EOS in last
    assert last <= {EOS, *named}


def test_ends_outside_the_vocabulary_are_left_out_with_a_notice(caplog: pytest.LogCaptureFixture) -> None:
    ranks = FakeRanks()
    ranks.model_config = FakeModelFacts(eos_token_ids=(5, VOCAB_SIZE, 10**9))
    assert end_token_ids(ranks) == (5, EOS)
    assert f"name {VOCAB_SIZE}, 1000000000 as the end" in caplog.text
    caplog.clear()
    ranks.model_config = FakeModelFacts()
    assert end_token_ids(ranks) == (EOS,)
    assert not caplog.text


def test_the_text_is_spelled_as_after_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = FakeRanks()
    asked: list[tuple[bool, list[int]]] = []

    def stream(skip_special: bool = True, prompt: Sequence[int] = ()) -> ByteDecoder:
        asked.append((skip_special, list(prompt)))
        return ByteDecoder()

    monkeypatch.setattr(ranks.tokenizer, "stream", stream)
    engine = make_engine(ranks)
    engine.add_request("one", PROMPT, greedy(skip_special_tokens=False))
    run_all(engine)
    assert asked == [(False, PROMPT)]


def test_a_request_whose_prompt_cannot_be_decoded_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = FakeRanks()

    def stream(skip_special: bool = True, prompt: Sequence[int] = ()) -> ByteDecoder:
        raise RuntimeError("no text")

    engine = make_engine(ranks)
    with monkeypatch.context() as patch:
        patch.setattr(ranks.tokenizer, "stream", stream)
        with pytest.raises(RuntimeError, match="no text"):
            engine.add_request("one", PROMPT, greedy())
    assert (engine.stats().num_waiting, engine.has_unfinished) == (0, False)
    engine.add_request("one", PROMPT, greedy())
    assert run_all(engine)[0]["one"].finish_reason == "length"


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("ignore_eos", [True, False])
def test_a_stop_string_that_is_a_special_token_is_that_token(skip: bool, ignore_eos: bool) -> None:
    ranks = FakeRanks()
    ranks.model_config = FakeModelFacts(eos_token_ids=())
    ranks.tokenizer.end_token_ids = ()
    tokens = greedy_tokens(PROMPT, 12)
    ranks.tokenizer.special_tokens = {"<mark>": tokens[4]}
    engine = make_engine(ranks)
    params = greedy(stop=["nowhere", "<mark>"], skip_special_tokens=skip, ignore_eos=ignore_eos)
    engine.add_request("one", PROMPT, params)
    output = run_all(engine)[0]["one"]
    first = tokens.index(tokens[4])
    assert output.token_ids == tokens[: first + 1]
    assert output.text == ranks.tokenizer.decode(tokens[:first])
    assert (output.finish_reason, output.outputs[0].stop_reason) == ("stop", "<mark>")


def test_a_stop_token_ends_with_its_id_as_the_reason() -> None:
    tokens = greedy_tokens(PROMPT, 12)
    output = run(PROMPT, greedy(stop_token_ids=[tokens[4]]))
    assert output.token_ids == tokens[: tokens.index(tokens[4]) + 1]
    assert (output.finish_reason, output.outputs[0].stop_reason) == ("stop", tokens[4])


def test_a_stop_string_ends_with_itself_as_the_reason() -> None:
    text = run(PROMPT, greedy(max_tokens=40)).text
    stop = text[6:8]
    output = run(PROMPT, greedy(max_tokens=40, stop=["nowhere to be found", stop]))
    assert output.text == text[: text.index(stop)]
    assert (output.finish_reason, output.outputs[0].stop_reason) == ("stop", stop)


def test_a_prompt_in_chunks_yields_its_first_token_only_at_its_end() -> None:
    ranks = FakeRanks()
    engine = make_engine(ranks, max_num_batched_tokens=16, max_num_seqs=4)
    engine.add_request("one", [5] * 40, greedy(max_tokens=2))
    assert [len(engine.step()) for _ in range(4)] == [0, 0, 1, 1]
    assert [batch.num_tokens for batch in ranks.batches] == [16, 16, 8, 1]
    assert [batch.logit_rows.tolist() for batch in ranks.batches] == [[], [], [7], [0]]


def test_running_sequences_get_their_token_before_prompts_get_the_rest() -> None:
    ranks = FakeRanks()
    engine = make_engine(ranks, max_num_batched_tokens=16, max_num_seqs=4)
    for name in ("a", "b"):
        engine.add_request(name, [1, 2], greedy(max_tokens=30))
    engine.step()
    engine.add_request("long", [5] * 40, greedy())
    engine.step()
    assert ranks.batches[-1].query_start.tolist() == [0, 1, 2, 16]


def test_requests_start_in_order_of_arrival() -> None:
    engine = make_engine(max_num_seqs=1)
    for name in ("a", "b", "c"):
        engine.add_request(name, PROMPT, greedy())
    outputs, _ = run_all(engine)
    assert list(outputs) == ["a", "b", "c"]


def test_the_latest_arrived_is_preempted_and_its_tokens_stay_the_same() -> None:
    engine = make_engine(FakeRanks(num_blocks=6))
    for name in ("a", "b", "c"):
        engine.add_request(name, [ord(name)] * 20, greedy(max_tokens=40))
    outputs, _ = run_all(engine)
    assert outputs["a"].metrics.num_preemptions == 0
    assert outputs["b"].metrics.num_preemptions > 0
    assert engine.stats().num_preemptions == sum(o.metrics.num_preemptions for o in outputs.values())
    for name, output in outputs.items():
        assert output.token_ids == greedy_tokens([ord(name)] * 20, 40)
    assert list(outputs) == ["a", "b", "c"]


@pytest.mark.parametrize("num_steps", range(5))
def test_abort_at_any_moment_frees_every_block(num_steps: int) -> None:
    engine = make_engine(max_num_batched_tokens=16, max_num_seqs=2)
    for name in ("a", "b", "c"):  # running, mid-prefill, waiting
        engine.add_request(name, [7] * 30, greedy())
    for _ in range(num_steps):
        engine.step()
    for name in ("b", "c", "a"):
        chunk = engine.abort(name)
        assert chunk is not None
        assert chunk.output is not None
        assert chunk.output.finish_reason == "abort"
        engine.check()
    assert not engine.has_unfinished
    assert engine.stats().num_free_blocks == 64
    assert engine.abort("a") is None
    assert engine.step() == []


def test_an_aborted_request_gives_out_the_text_it_held_back() -> None:
    text = run(PROMPT, greedy(max_tokens=30)).text
    engine = make_engine()
    engine.add_request("one", PROMPT, greedy(max_tokens=30, stop=text[:3] + "never"))
    deltas = [chunk.text for _ in range(3) for chunk in engine.step()]
    last = engine.abort("one")
    assert last is not None
    assert last.output is not None
    assert "".join(deltas) + last.text == last.output.text


def test_same_seed_same_tokens_and_another_seed_others() -> None:
    params = [SamplingParams(max_tokens=20, seed=seed, ignore_eos=True) for seed in (1, 1, 2)]
    engine = make_engine(max_num_batched_tokens=8, max_num_seqs=8)
    for index, param in enumerate(params):
        engine.add_request(str(index), PROMPT, param)
    outputs, _ = run_all(engine)
    assert outputs["0"].token_ids == outputs["1"].token_ids == run_alone(PROMPT, params[0]).token_ids
    assert outputs["2"].token_ids != outputs["0"].token_ids


def test_without_a_seed_the_engine_s_seed_and_the_request_s_number_decide() -> None:
    def tokens(seed: int) -> list[list[int]]:
        engine = make_engine(seed=seed)
        for name in ("a", "b"):
            engine.add_request(name, PROMPT, SamplingParams(max_tokens=20, ignore_eos=True))
        return [output.token_ids for output in run_all(engine)[0].values()]

    first = tokens(0)
    assert first == tokens(0)
    assert first[0] != first[1]
    assert tokens(1) != first


def test_logprobs_come_one_per_token() -> None:
    engine = make_engine()
    engine.add_request("one", PROMPT, greedy(logprobs=2))
    outputs, chunks = run_all(engine)
    logprobs = outputs["one"].outputs[0].logprobs
    assert logprobs is not None
    assert [next(iter(each)) for each in logprobs] == outputs["one"].token_ids
    assert [each for chunk in chunks["one"] for each in chunk.logprobs or []] == logprobs


def test_bad_requests_are_clear_errors_and_leave_no_trace() -> None:
    engine = make_engine(FakeRanks(num_blocks=3))
    engine.add_request("mine", PROMPT, greedy())
    for name, prompt, params, error in [
        ("mine", PROMPT, greedy(), RequestError),
        ("new", [], greedy(), RequestError),
        ("new", [257], greedy(), RequestError),
        ("new", [True], greedy(), RequestError),
        ("new", [1.5], greedy(), RequestError),
        ("new", "text", greedy(), RequestError),
        ("new", [1] * 128, greedy(), PromptTooLong),
        ("new", [1] * 30, greedy(max_tokens=20), CacheTooSmall),
    ]:
        with pytest.raises(error):
            engine.add_request(name, prompt, params)  # type: ignore[arg-type]
    assert list(run_all(engine)[0]) == ["mine"]


def test_a_failed_step_is_the_answer_to_everything_after_it() -> None:
    ranks = FakeRanks()
    engine = make_engine(ranks)
    engine.add_request("one", PROMPT, greedy())
    ranks.failure = RankFailed("rank 1 died", 1)
    for call in (engine.step, engine.step, lambda: engine.add_request("two", PROMPT, greedy())):
        with pytest.raises(RankFailed, match="rank 1 died"):
            call()


def test_a_step_broken_off_half_way_ends_the_engine() -> None:
    class Interrupted(FakeRanks):
        def execute(self, *_: object) -> Any:
            raise KeyboardInterrupt

    engine = make_engine(Interrupted())
    engine.add_request("one", PROMPT, greedy())
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    with pytest.raises(EngineError, match="interrupted"):
        engine.step()


def test_metrics_and_stats_count_what_happened() -> None:
    engine = make_engine(max_num_batched_tokens=16, max_num_seqs=1, prefix_cache=False)
    before = time.time()
    for name in ("a", "b"):
        engine.add_request(name, [3] * 24, greedy())
    engine.step()
    assert (engine.stats().num_running, engine.stats().num_waiting) == (1, 1)
    assert engine.stats().num_free_blocks == 62
    outputs, _ = run_all(engine)
    metrics = outputs["b"].metrics
    assert before <= metrics.arrival_time <= time.time()
    assert metrics.queue_s is not None
    assert metrics.time_to_first_token_s is not None
    assert 0 < metrics.queue_s < metrics.time_to_first_token_s < metrics.total_s
    assert (metrics.num_prompt_tokens, metrics.num_output_tokens) == (24, 12)
    assert metrics.prefill_tokens_per_second is not None
    assert metrics.prefill_tokens_per_second > 0
    assert metrics.decode_tokens_per_second is not None
    stats = engine.stats()
    assert (stats.num_prompt_tokens, stats.num_output_tokens, stats.num_finished) == (48, 24, 2)
    assert stats.num_steps == 2 * (2 + 11)
    assert stats.decode_tokens_per_second > 0
