import pytest

from interlace.cli.bench.workload import FULL, QUICK, Generated, ServeWorkload, longest_sequence, whole_blocks
from interlace.errors import BenchError

DECODE = ServeWorkload("decode", 2, 16, 4)


def run_of(workload: ServeWorkload, first_s: float, num_at_first: int, total_s: float) -> Generated:
    return Generated([[1] * workload.output_tokens] * workload.batch, first_s, num_at_first, total_s)


def test_prefill_counts_prompt_tokens_until_the_first_token() -> None:
    assert ServeWorkload("prefill", 1, 512, 1).rate(
        Generated([[1]], first_s=0.5, num_at_first=1, total_s=0.6)
    ) == pytest.approx(1024)


def test_decode_leaves_out_what_there_was_when_the_last_sequence_began() -> None:
    assert DECODE.rate(run_of(DECODE, first_s=1.0, num_at_first=3, total_s=2.0)) == pytest.approx(5)


def test_job_counts_every_output_token_over_the_whole_time() -> None:
    job = ServeWorkload("job", 2, 16, 4)
    assert job.rate(run_of(job, first_s=1.0, num_at_first=2, total_s=2.0)) == pytest.approx(4)


@pytest.mark.parametrize("tokens", [[[1, 2, 3, 4]], [[1, 2, 3, 4], [1, 2, 3]], [[1] * 5, [1] * 4]])
def test_missing_or_extra_tokens_are_an_error_not_a_speed(tokens: list[list[int]]) -> None:
    with pytest.raises(BenchError, match=r"expected \[4, 4\]"):
        DECODE.rate(Generated(tokens, 0.1, 2, 0.2))


@pytest.mark.parametrize("workload", FULL + QUICK, ids=lambda w: w.name)
def test_prompts_have_their_shape_and_stay_in_the_vocabulary(workload: ServeWorkload) -> None:
    prompts = workload.prompts(vocab_size=1000, seed=3)
    assert [len(prompt) for prompt in prompts] == [workload.prompt_tokens] * workload.batch
    assert all(0 <= token < 1000 for prompt in prompts for token in prompt)


def test_prompts_are_the_same_for_every_system_and_new_in_every_round() -> None:
    assert DECODE.prompts(1000, seed=1) == DECODE.prompts(1000, seed=1)
    assert DECODE.prompts(1000, seed=1) != DECODE.prompts(1000, seed=2)
    first, second = DECODE.prompts(1000, seed=1)
    assert first != second


def test_names_tell_shapes_apart() -> None:
    assert len({workload.name for workload in FULL}) == len(FULL)
    assert longest_sequence(FULL) == 2049


def test_tokens_are_rounded_up_to_whole_blocks() -> None:
    assert [whole_blocks(num_tokens) for num_tokens in (1, 16, 17, 2049)] == [16, 16, 32, 2064]
