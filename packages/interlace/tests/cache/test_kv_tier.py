"""Tiers below the KV cache as a person writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emucxl import Context
from emucxl.presets import preset
from emucxl.providers import Anon, Dax, Numa, Shm
from emucxl.timing import Timing
from interlace.cache.kv_tier import KvTierSpec
from interlace.engine.config import EngineConfig
from interlace.errors import EngineError

SLOW = Timing(5000, 5000, 0.25, 0.25)


@pytest.mark.parametrize(
    ("text", "name", "size_bytes", "timing"),
    [
        ("cxl:8GB", "cxl", 8 * 10**9, None),
        ("cxl:8GB@cxl-direct", "cxl", 8 * 10**9, preset("cxl-direct").timing),
        ("my-tier_2:512MiB@0.25GB/s,5us", "my-tier_2", 512 << 20, SLOW),
        ("dram:1.5KiB", "dram", 1536, None),
        ("shm:1TB@250MB/s,5000ns", "shm", 10**12, SLOW),
        ("numa:0", "numa0", None, None),
        ("numa:12:8GB", "numa12", 8 * 10**9, None),
        ("numa:1:4KB@0.25GB/s,5us", "numa1", 4000, SLOW),
        ("dax:/dev/dax0.0", "dax0.0", None, None),
        ("dax:/dev/dax{rank}.0:8GiB", "daxN.0", 8 << 30, None),
        ("dax:/", "dax", None, None),
        (f"dax:/a/b c é{'d' * 40}", f"b_c__{'d' * 18}", None, None),
        ("dax:/a file/x@cxl-direct", "x", None, preset("cxl-direct").timing),
    ],
)
def test_every_form_is_read(text: str, name: str, size_bytes: int | None, timing: Timing | None) -> None:
    spec = KvTierSpec.parse(text)
    assert (spec.name, spec.size_bytes, spec.timing, spec.text) == (name, size_bytes, timing, text)


@pytest.mark.parametrize("text", [f"{'x' * 23}:1MB", f"dax:/dev/{'x' * 99}"])
def test_the_longest_name_fits_a_tier_of_emucxl_whatever_it_is_for(text: str) -> None:
    with Context() as context:
        for purpose in ("kv", "weights"):
            context.add_tier(f"{purpose}-{KvTierSpec.parse(text).name}", 4096)


@pytest.mark.parametrize(
    ("text", "provider"),
    [
        ("cxl:8GB", Anon()),
        ("shm:8GB", Shm()),
        ("numa:3:8GB", Numa(3)),
        ("dax:/dev/dax1.0", Dax("/dev/dax1.0")),
        ("dax:/dev/dax{rank}.0", Dax("/dev/dax2.0")),
    ],
)
def test_pages_come_from_where_it_says(text: str, provider: Any) -> None:
    assert KvTierSpec.parse(text).provider(rank=2, num_ranks=1) == provider


def test_ranks_need_a_device_each() -> None:
    with pytest.raises(EngineError, match=r"'dax:/dev/dax0\.0' for 2 ranks: expected a device for each"):
        KvTierSpec.parse("dax:/dev/dax0.0").provider(rank=0, num_ranks=2)
    paths = [KvTierSpec.parse("dax:/d/{rank}").provider(rank, num_ranks=2) for rank in range(2)]
    assert paths == [Dax("/d/0"), Dax("/d/1")]


@pytest.mark.parametrize(
    "text",
    [
        "", "cxl", "cxl:", ":8GB", "8GB", "cxl 8GB", "1cxl:8GB", "cxl@cxl-direct", "cxl:8GB@", "cxl:8GB@a@b",
        "a-name-of-24-letters-xyz:8GB", "çxl:8GB", "numa:", "numa:one", "numa:-1", "numa:1:", "numa:1:8GB:9",
        "numa:12345", "dax:", "dax:relative", "dax:/dev/dax0.0:", "dax:/a:b:8GB", "cxl:8GB\n",
    ],
)  # fmt: skip
def test_a_bad_form_is_refused_with_the_good_ones(text: str) -> None:
    with pytest.raises(EngineError) as caught:
        KvTierSpec.parse(text)
    assert repr(text) in str(caught.value)
    assert "expected" in str(caught.value)


@pytest.mark.parametrize(
    "size", ["8", "8G", "GB", "-8GB", "0GB", "0.0001KB", "8gb", "1e3GB", "unlimited", "8 GB", "nanGB", "٣GB"]
)
@pytest.mark.parametrize("form", ["cxl:{}", "numa:0:{}", "dax:/dev/dax0.0:{}"])
def test_a_bad_size_is_refused_with_a_good_one(form: str, size: str) -> None:
    text = form.format(size)
    with pytest.raises(EngineError) as caught:
        KvTierSpec.parse(text)
    assert str(caught.value).startswith(f"got the tier {text!r}: expected a size")
    assert "such as 8GB or 512MiB" in str(caught.value)
    assert repr(size) in str(caught.value)


@pytest.mark.parametrize(
    "timing", ["cxl-indirect", "1GB/s", "1GB/s,5", "0GB/s,5us", "1e9GB/s,5us", "1GB/s,99999ms", "fast"]
)
def test_a_bad_timing_is_refused(timing: str) -> None:
    text = f"cxl:8GB@{timing}"
    with pytest.raises(EngineError, match="expected") as caught:
        KvTierSpec.parse(text)
    assert str(caught.value).startswith(f"the timing of the tier {text!r}: ")


@pytest.mark.parametrize("tier", [None, 8, b"cxl:8GB", Path("/dev/dax0.0")])
def test_a_tier_that_is_no_text_is_refused(tier: Any) -> None:
    with pytest.raises(EngineError, match=r"got the tier .*: expected NAME:SIZE"):
        KvTierSpec.parse(tier)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_tiers": "cxl:8GB"}, "a list of tiers"),
        ({"kv_tiers": 8}, "a list of tiers"),
        ({"kv_tiers": ["cxl:8GB", "cxl:9GB"]}, "tiers of different names"),
        ({"kv_tiers": ["numa:1", "numa:1:8GB"]}, "tiers of different names"),
        ({"kv_tiers": [f"t{n}:1MB" for n in range(9)]}, "at most 8 tiers"),
        ({"kv_tiers": ["cxl:8GB"], "prefix_cache": False}, "prefix_cache=False"),
        ({"kv_tiers": ["cxl:8GB"], "device": "cuda"}, "device='cuda'"),
        ({"kv_tiers": ["cxl:8GB"], "kv_tier_write": "around"}, "one of through, back"),
        ({"kv_tiers": ["cxl:8GB"], "kv_tier_policy": "leave"}, "one of lru, tinylfu"),
        ({"kv_tiers": ["cxl:8GB"], "kv_tier_timeout_s": 0}, "kv_tier_timeout_s"),
        ({"kv_tiers": ["cxl:8GB"], "kv_tier_timeout_s": float("inf")}, "kv_tier_timeout_s"),
        ({"kv_tiers": ["cxl"]}, "NAME:SIZE"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        EngineConfig.from_options("model", options)


def test_devices_of_different_names_may_stand_in_a_row() -> None:
    tiers = ["cxl:8GB", "numa:1", "numa:2", "dax:/dev/dax0.0", "dax:/dev/dax1.0"]
    assert len(EngineConfig.from_options("model", {"kv_tiers": tiers}).tier_specs) == 5
