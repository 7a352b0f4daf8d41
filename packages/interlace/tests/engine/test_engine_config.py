from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch

from interlace.engine.config import EngineConfig, EngineOptions
from interlace.engine.dtypes.choice import named
from interlace.engine.ranks.launch import resolve_communicator
from interlace.errors import EngineError
from tokenweave.kernels import NativeKernels, ReferenceKernels
from tokenweave.link import LinkSpec

BAD: dict[str, list[Any]] = {
    "tp": [0, -1, 1.0, "2", True],
    "device": ["gpu", "cuda:1", None, 0],
    "communicator": ["mpi", None, ""],
    "dtype": ["float64", None, np.array(["auto", "float32"])],
    "threads": [0, 1.5, True],
    "max_num_seqs": [0, None],
    "max_num_batched_tokens": [0, 63, None],
    "max_model_len": [0, 1.5],
    "num_kv_blocks": [0, -3],
    "kv_cache_gb": [0, -1.0, 10**400, math.nan, math.inf, "4", True],
    "kernels": ["cuda", None],
    "quantize": ["int3", None, "", 8],
    "generation_config": ["vllm", None, "", 1],
    "seed": [-1, 2**64, None, 1.0, 10**5000],
    "timeout_s": [0, -5, math.nan, None],
    "replay": [None, 1, "no"],
    "prefix_cache": [None, 0, "off"],
    "record_block_trace": ["", 3, b"trace"],
    "weights_tier": ["", 3, "cxl", "cxl:8", "cxl:8GB@fast", "numa:x", "cxl:8GB@1GB/s,20000ms"],
    "link": ["fast", "", "1GB/s", "0GB/s,5us", "1GB/s,20000ms", 3],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in BAD.items() for value in values],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_bad_value_is_named_with_what_was_expected(name: str, value: Any) -> None:
    with pytest.raises(EngineError, match=rf"^{name}=.*: expected .+"):
        EngineConfig.from_options("smollm2", {name: value})


@pytest.mark.parametrize("model", ["", None, 3])
def test_a_model_is_a_string(model: Any) -> None:
    with pytest.raises(EngineError, match="model="):
        EngineConfig(model)


def test_an_unknown_option_is_refused_with_the_known_ones() -> None:
    with pytest.raises(EngineError, match=r"unknown option 'max_seqs': expected one of tp, .*max_num_seqs"):
        EngineConfig.from_options("smollm2", {"max_seqs": 3})


def test_blocks_are_recorded_by_the_names_of_the_prefix_cache() -> None:
    with pytest.raises(
        EngineError, match="record_block_trace='trace': expected None with prefix_cache=False"
    ):
        EngineConfig("smollm2", prefix_cache=False, record_block_trace="trace")


def test_ranks_are_told_of_a_path_as_text() -> None:
    assert EngineConfig("smollm2", record_block_trace=Path("a/b")).record_block_trace == "a/b"


def test_the_size_of_the_cache_is_given_once() -> None:
    with pytest.raises(EngineError, match="kv_cache_gb"):
        EngineConfig("smollm2", num_kv_blocks=10, kv_cache_gb=1.0)


def test_float16_is_refused_by_name_on_the_cpu() -> None:
    for options in ({"device": "cpu"}, {"kernels": "native"}):
        with pytest.raises(EngineError, match=r"dtype='float16': expected float32 or bfloat16 on the CPU"):
            EngineConfig.from_options("smollm2", {"dtype": "float16", **options})
    for kernels in (NativeKernels(), ReferenceKernels()):  # as device="auto" gives them where there is no GPU
        with pytest.raises(
            EngineError, match=r"dtype='float16': .*the kernels here are the (native|reference)"
        ):
            named("float16", kernels)
    assert named("float16", ReferenceKernels(device="meta")) is torch.float16


@pytest.mark.parametrize(
    "options", [{"device": "cpu"}, {"kernels": "reference"}, {"kernels": "native"}], ids=str
)
def test_fp8_is_refused_by_name_on_the_cpu(options: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match=r"quantize='fp8': expected int8 or int4 on the CPU"):
        EngineConfig.from_options("smollm2", {"quantize": "fp8", **options})
    assert EngineConfig("smollm2", device="cuda", quantize="fp8").quantize == "fp8"


def test_options_and_fields_are_the_same() -> None:
    hints = get_type_hints(EngineConfig)
    options = get_type_hints(EngineOptions)
    assert list(options) == [field.name for field in fields(EngineConfig) if field.name != "model"]
    assert all(options[name] == hints[name] for name in options)


def test_a_link_is_read_with_its_units() -> None:
    assert EngineConfig("smollm2").link_spec is None
    assert EngineConfig("smollm2", tp=2, link="250MB/s,5us").link_spec == LinkSpec(0.25, 5000)


def test_a_link_needs_ranks_to_join() -> None:
    with pytest.raises(EngineError, match="communicator='null': one rank has no other"):
        EngineConfig("smollm2", communicator="null", link="1GB/s,5us")
    with pytest.raises(EngineError, match="with tp=1; one rank has no other to be linked to"):
        resolve_communicator(EngineConfig("smollm2", link="1GB/s,5us"))
