"""EngineConfig: everything an engine is told when it is built.

Imports nothing heavy: rank processes read it before they load torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NoReturn, TypedDict

from interlace.cache.kv_tier import KvTierSpec
from interlace.cache.tier_index import POLICY_NAMES
from interlace.engine.values import as_float, shown
from interlace.errors import EngineError
from tokenweave.errors import CommunicatorError
from tokenweave.link import LinkSpec

COMMUNICATORS = ("auto", "null", "thread", "shm", "torch", "nccl", "symm_mem")
OF_GPUS = ("nccl", "symm_mem")  # communicators that join ranks on GPUs alone
DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "bfloat16", "float16")
KERNELS = ("auto", "native", "reference")
WEAVES = ("auto", "always", "never")
EXECUTORS = ("lanes", "sequential")
GENERATION_CONFIGS = ("auto", "none")
QUANTIZATIONS = ("auto", "none", "stored", "int8", "int4", "fp8")
WRITES = ("through", "back")
FETCHES = ("auto", "always")
MOST_TIERS = 8
SEED_LIMIT = 2**64


class EngineOptions(TypedDict, total=False):
    """The keyword arguments of LLM and AsyncLLM; EngineConfig says what each means and its default."""

    tp: int
    device: str
    communicator: str
    dtype: str
    threads: int | None
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int | None
    num_kv_blocks: int | None
    kv_cache_gb: float | None
    kernels: str
    seed: int
    timeout_s: float
    weave: str
    executor: str
    replay: bool
    link: str | None
    generation_config: str
    quantize: str
    prefix_cache: bool
    record_block_trace: str | os.PathLike[str] | None
    kv_tiers: Sequence[str]
    kv_tier_write: str
    kv_tier_policy: str
    kv_fetch: str
    kv_tier_timeout_s: float
    weights_tier: str | None


@dataclass(frozen=True)
class EngineConfig:
    """Checked when made: a bad value raises EngineError, whose message says what was expected."""

    model: str  # a path, a hub id or an alias
    tp: int = 1  # ranks
    device: str = "auto"  # where ranks compute; auto: on GPUs where there are any that can, else on the CPU
    communicator: str = "auto"
    dtype: str = "auto"
    threads: int | None = None  # per rank; None: the cores that the host grants, shared among its ranks
    max_num_seqs: int = 64  # sequences in one forward pass
    max_num_batched_tokens: int = 2048  # tokens in one forward pass
    max_model_len: int | None = None  # tokens of prompt and output; None: the model's context
    num_kv_blocks: int | None = None  # blocks of 16 tokens; None: from kv_cache_gb
    kv_cache_gb: float | None = None  # per rank, 1e9 bytes; None: a share of the memory that is free
    kernels: str = "auto"  # native: for CPUs; reference: torch's operations, on any device
    seed: int = 0  # seeds of requests that bring none are derived from it
    timeout_s: float = 60.0  # the longest wait for another rank, a pass on the GPU, or a layer's weights
    weave: str = (
        "auto"  # auto: split a batch where that is predicted to be faster; always: in the middle; never
    )
    executor: str = "lanes"  # sequential: the oracle, which overlaps nothing
    replay: bool = True  # passes that come again are captured, and replayed by native code or as CUDA graphs
    link: str | None = None  # a slower interconnect to model between the ranks, say "0.25GB/s,5us"
    generation_config: str = "auto"  # auto: a request without parameters takes the model's own; none: ours
    quantize: str = "auto"  # weights in blocks, or dense: see `interlace.models.footprint.resolve_quantize`
    prefix_cache: bool = True  # prompts that begin alike are computed once, as long as the blocks are there
    record_block_trace: str | os.PathLike[str] | None = (
        None  # a file: which blocks requests ask for, and when
    )
    kv_tiers: Sequence[str] = ()  # memories below the KV cache, from the top: see `KvTierSpec`
    kv_tier_write: str = "through"  # blocks go down when they are full; back: when their memory is needed
    kv_tier_policy: str = "lru"  # which block leaves a tier that is full
    kv_fetch: str = (
        "auto"  # auto: fetch as much of a prompt as is faster than to compute it; always: all that is there
    )
    kv_tier_timeout_s: float = 2.0  # what takes so much longer than its tier is modelled to take is given up
    weights_tier: str | None = None  # the memory below that layers are fetched from: see `KvTierSpec`

    @classmethod
    def from_options(cls, model: str, options: Mapping[str, Any]) -> EngineConfig:
        """Raises EngineError for an option that does not exist."""
        known = [field.name for field in fields(cls) if field.name != "model"]
        for name in options:
            if name not in known:
                raise EngineError(f"unknown option {name!r}: expected one of {', '.join(known)}")
        return cls(model, **options)

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            _reject("model", self.model, "a path, a hub id or an alias such as 'smollm2'")
        for name in ("tp", "max_num_seqs", "max_num_batched_tokens"):
            _check_count(name, getattr(self, name))
        for name in ("threads", "max_model_len", "num_kv_blocks"):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name))
        for name, choices in (
            ("device", DEVICES),
            ("communicator", COMMUNICATORS),
            ("dtype", DTYPES),
            ("kernels", KERNELS),
            ("weave", WEAVES),
            ("executor", EXECUTORS),
            ("generation_config", GENERATION_CONFIGS),
            ("quantize", QUANTIZATIONS),
            ("kv_tier_write", WRITES),
            ("kv_fetch", FETCHES),
            ("kv_tier_policy", POLICY_NAMES),
        ):
            if not isinstance(getattr(self, name), str) or getattr(self, name) not in choices:
                _reject(name, getattr(self, name), f"one of {', '.join(choices)}")
        for name in ("replay", "prefix_cache"):
            if not isinstance(getattr(self, name), bool):
                _reject(name, getattr(self, name), "True or False")
        self._check_recording()
        self._check_tiers()
        self._check_weights_tier()
        self._check_limits()
        self._check_link()
        self._check_device()

    @property
    def link_spec(self) -> LinkSpec | None:
        """The link between the ranks that is to be modelled."""
        return None if self.link is None else LinkSpec.parse(self.link)

    @property
    def tier_specs(self) -> tuple[KvTierSpec, ...]:
        """The tiers below the KV cache, from the top."""
        return tuple(KvTierSpec.parse(text) for text in self.kv_tiers)

    @property
    def weights_tier_spec(self) -> KvTierSpec | None:
        """The tier of the layers' weights; None: they are in local memory."""
        return None if self.weights_tier is None else KvTierSpec.parse(self.weights_tier)

    def _check_tiers(self) -> None:
        if isinstance(self.kv_tiers, str) or not isinstance(self.kv_tiers, Sequence):
            _reject("kv_tiers", self.kv_tiers, "a list of tiers, such as ['cxl:8GB@cxl-direct']")
        object.__setattr__(self, "kv_tiers", tuple(self.kv_tiers))
        specs = self.tier_specs
        if len({spec.name for spec in specs}) != len(specs):
            _reject("kv_tiers", self.kv_tiers, "tiers of different names")
        if len(specs) > MOST_TIERS:
            _reject("kv_tiers", self.kv_tiers, f"at most {MOST_TIERS} tiers")
        if specs and not self.prefix_cache:
            _reject(
                "kv_tiers", self.kv_tiers, "none with prefix_cache=False, which keeps no block to be found"
            )
        if specs and self.device == "cuda":
            _reject(
                "kv_tiers", self.kv_tiers, "none with device='cuda': tiers are below a KV cache on the CPU"
            )

    def _check_weights_tier(self) -> None:
        try:
            spec = self.weights_tier_spec
        except EngineError as error:
            _reject("weights_tier", self.weights_tier, str(error).partition("expected ")[2] or str(error))
        if spec is None:
            return
        if spec.path in {each.path for each in self.tier_specs} - {None}:
            _reject("weights_tier", self.weights_tier, "a device that no tier of kv_tiers has")
        if self.device == "cuda":
            _reject(
                "weights_tier", self.weights_tier, "None with device='cuda': layers come to a CPU's memory"
            )

    def _check_link(self) -> None:
        try:
            is_pointless = self.link_spec is not None and self.communicator == "null"
        except CommunicatorError as error:
            _reject("link", self.link, str(error).rpartition("expected ")[2])
        if is_pointless:
            _reject("link", self.link, "None with communicator='null': one rank has no other to be linked to")

    def _check_device(self) -> None:
        if self.dtype == "float16" and (self.device == "cpu" or self.kernels == "native"):
            _reject("dtype", self.dtype, "float32 or bfloat16 on the CPU: float16 is for device='cuda'")
        if self.quantize == "fp8" and (self.device == "cpu" or self.kernels != "auto"):
            _reject("quantize", self.quantize, "int8 or int4 on the CPU: its kernels multiply no fp8")
        if self.device == "cpu" and self.communicator in OF_GPUS:
            _reject("communicator", self.communicator, "another with device='cpu': it joins ranks on GPUs")
        if self.device != "cuda":
            return
        if self.kernels == "native":
            _reject(
                "kernels", self.kernels, "auto or reference with device='cuda': native ones compute on CPUs"
            )
        if self.communicator == "shm":
            _reject("communicator", self.communicator, "another with device='cuda': shm joins ranks on CPUs")
        if self.link is not None:
            _reject("link", self.link, "None with device='cuda': links are modelled between ranks on CPUs")

    def _check_recording(self) -> None:
        path = self.record_block_trace
        if path is None:
            return
        if (
            not isinstance(path, str | os.PathLike)
            or not isinstance(os.fspath(path), str)
            or not os.fspath(path)
        ):
            _reject("record_block_trace", path, "the path of a file, or None")
        if not self.prefix_cache:
            _reject("record_block_trace", path, "None with prefix_cache=False: it is what names blocks")
        object.__setattr__(self, "record_block_trace", os.fspath(path))  # ranks are told in JSON

    def _check_limits(self) -> None:
        if self.max_num_batched_tokens < self.max_num_seqs:
            _reject(
                "max_num_batched_tokens",
                self.max_num_batched_tokens,
                f"at least max_num_seqs={self.max_num_seqs}, or some running sequences would idle",
            )
        if self.num_kv_blocks is not None and self.kv_cache_gb is not None:
            _reject("kv_cache_gb", self.kv_cache_gb, "None when num_kv_blocks is set: both size the cache")
        for name in ("kv_cache_gb", "timeout_s", "kv_tier_timeout_s"):
            value = getattr(self, name)
            is_unset = value is None and name == "kv_cache_gb"
            if not is_unset and (as_float(value) or 0.0) <= 0:
                _reject(name, value, "a number above 0")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < SEED_LIMIT:
            _reject("seed", self.seed, f"an integer from 0 to {SEED_LIMIT - 1}")


def _reject(name: str, got: Any, expected: str) -> NoReturn:
    raise EngineError(f"{name}={shown(got)}: expected {expected}")


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        _reject(name, value, "an integer of at least 1")
