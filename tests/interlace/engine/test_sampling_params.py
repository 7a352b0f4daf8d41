from __future__ import annotations

import math
from typing import Any

import pytest

from interlace import SamplingParams
from interlace.errors import SamplingError

NAN, INF = math.nan, math.inf

BAD = {
    "max_tokens": [0, -1, 1.5, "9", True],
    "temperature": [-0.1, NAN, INF, "hot", None, True],
    "top_k": [-2, 2.5, "5", None, False],
    "top_p": [0, 0.0, -0.1, 1.1, NAN, "0.5", None],
    "min_p": [-0.1, 1.1, NAN, None],
    "repetition_penalty": [0, -1.0, NAN, INF, "1"],
    "presence_penalty": [-2.1, 2.1, NAN, None],
    "frequency_penalty": [-2.1, 2.1, NAN, None],
    "seed": [-1, 2**64, 1.0, "7", True],
    "stop": ["", [""], ["a", 3], 5, b"bytes"],
    "stop_token_ids": [[-1], ["a"], 7, [1.0], [True], "7"],
    "ignore_eos": [1, "yes", None],
    "logprobs": [-1, 1.0, True],
    "skip_special_tokens": [0, None],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD.items() for value in values]
)
def test_a_bad_value_is_named_with_what_was_expected(name: str, value: Any) -> None:
    with pytest.raises(SamplingError, match=rf"^{name}=.*: expected .*; .+"):
        SamplingParams(**{name: value})


def test_the_edges_are_allowed() -> None:
    SamplingParams(max_tokens=None, temperature=0, top_k=0, top_p=1, min_p=1, seed=0, logprobs=0)
    SamplingParams(presence_penalty=-2, frequency_penalty=2, seed=2**64 - 1, top_p=1e-9, stop=[])


def test_stops_are_kept_as_tuples() -> None:
    params = SamplingParams(stop="END", stop_token_ids=[3, 4])
    assert (params.stop_strings, params.stop_ids) == (("END",), (3, 4))
    assert SamplingParams(stop=["a", "b"]).stop_strings == ("a", "b")
    assert hash(params) == hash(SamplingParams(stop=["END"], stop_token_ids=(3, 4)))
