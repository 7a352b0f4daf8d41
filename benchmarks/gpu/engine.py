"""The engine on random weights of Llama-3-8B's shapes, beside the floor of what the device copies and multiplies.

All is timed as a caller sees it: by the host's clock, from an idle device to the token ids on the host. The answers are
compared with those of the plain loop before that, which `peers` compares with transformers'.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.device import Device, check_close
from benchmarks.gpu.findings import Finding, Verdict, asked
from benchmarks.gpu.floors import Floors
from benchmarks.gpu.llama import LLAMA_8B, TINY, PassWork, decode_work, prefill_work
from benchmarks.gpu.plain import PlainLoop
from benchmarks.gpu.served import Served
from benchmarks.gpu.spans import busy_us, profiled
from benchmarks.gpu.stage import StageJob
from benchmarks.gpu.weights import RandomWeights
from emucxl.bench.harness import Samples, interleaved
from interlace.models.config import ModelConfig
from tokenweave.kernels import BLOCK_SIZE, blocks_for

FP8_S = 25.0  # what that part may take
FP8_BOUND = 0.2  # the same, where weights have three bits of fraction
BOUND = {torch.bfloat16: 5e-2, torch.float32: 1e-4}  # of the logits' relative error, over all layers
CHECKED_TOKENS = 37  # of the prompt whose logits are compared
WANTED = {1: 0.8, 64: 0.7}  # of the floor, by sequences that decode
WANTED_PREFILL, WANTED_TOKENS = 0.7, 2048  # of the floor, of prompts so long and longer
MOST_IDLE = 0.05  # of a step, in which the device waits for the host


@dataclass(frozen=True)
class EngineShapes:
    """The shapes that are measured, and how often."""

    config: ModelConfig
    batches: tuple[int, ...]  # sequences that decode
    prompt: int  # tokens that each of them has read
    prefills: tuple[int, ...]  # tokens of a prompt
    fp8_batches: tuple[int, ...]  # sequences that decode with weights in FP8
    rounds: int
    steps: int  # of decoding, in a sample
    warm_up: int = 3  # samples that do not count: shapes come, come again and are captured, and are replayed
    checked: int = CHECKED_TOKENS

    @property
    def num_steps(self) -> int:
        """The steps that a batch is to have room for: warm-up, samples, and one more sample under the profiler."""
        return self.steps * (self.warm_up + self.rounds + 2)

    @property
    def num_tokens(self) -> int:
        """Room in the cache."""
        each = blocks_for(self.prompt + self.num_steps) * BLOCK_SIZE
        return max(max(self.batches) * each, max(self.prefills) + BLOCK_SIZE)

    def prompts(self, count: int, num_tokens: int) -> list[list[int]]:
        """Random token ids, other ones for each prompt."""
        ids = np.random.default_rng([count, num_tokens]).integers(
            0, self.config.vocab_size, (count, num_tokens)
        )
        found: list[list[int]] = ids.tolist()
        return found


FULL = EngineShapes(LLAMA_8B, (1, 8, 64, 256), 256, (512, 2048, 8192, 16384), (1, 64), rounds=7, steps=8)
QUICK = EngineShapes(LLAMA_8B, (1, 64), 256, (2048,), (), rounds=3, steps=8)
DRY = EngineShapes(TINY, (2,), 3, (5,), (2,), rounds=1, steps=1, warm_up=0, checked=4)


def shapes_of(job: StageJob) -> EngineShapes:
    return DRY if job.options.is_dry_run else QUICK if job.options.is_quick else FULL


def run(job: StageJob) -> None:
    device, shapes = job.device, shapes_of(job)
    floors = Floors.measured(device, job.options.is_dry_run)
    weights = RandomWeights(shapes.config, device)
    job.told.keep(bytes_per_s=floors.bytes_per_s, flops_per_s=floors.flops_per_s)
    cases: dict[str, Any] = {}
    with served_on(device, weights, shapes, "none") as served:
        off = check(device, shapes, served, weights, BOUND[device.dtype])
        job.told.keep(logits_off_by=off)
        for num_seqs in shapes.batches:
            decode(job, shapes, served, floors, num_seqs, cases)
        for num_tokens in shapes.prefills:
            prefill(job, shapes, served, floors, num_tokens, cases)
    if shapes.fp8_batches and job.left_s < FP8_S:
        left = f"{job.left_s:.0f} s are left"
        job.told.show(Finding("weights in FP8", left, "", Verdict.NOT_RUN))
    elif shapes.fp8_batches:
        with served_on(device, weights, shapes, "fp8") as served:
            off = check(device, shapes, served, weights, FP8_BOUND)
            job.told.show(Finding("weights in FP8, logits", f"off by {off:.1e}"))
            for num_seqs in shapes.fp8_batches:
                decode(job, shapes, served, floors, num_seqs, cases, "weights in FP8, ")


@contextmanager
def served_on(
    device: Device, weights: RandomWeights, shapes: EngineShapes, quantize: str
) -> Iterator[Served]:
    served = Served.on(device, weights, max(shapes.batches), shapes.num_tokens, quantize)
    try:
        yield served
    finally:
        served.close()


def check(
    device: Device, shapes: EngineShapes, served: Served, weights: RandomWeights, bound: float
) -> float:
    """The relative error of the logits after a prompt and of a step after it. Raises ArithmeticError if it is large."""
    (ids,) = shapes.prompts(1, shapes.checked)
    plain = PlainLoop(weights, device, is_compiled=False)
    cache, given = plain.new_cache(1, len(ids)), torch.tensor([ids], device=device.kind)
    expected = torch.cat([plain.prefill(given[:, :-1], cache), plain.decode(given[:, -1:], cache)])
    return check_close("the engine's logits", served.logits(ids), expected, bound)


def decode(
    job: StageJob,
    shapes: EngineShapes,
    served: Served,
    floors: Floors,
    num_seqs: int,
    cases: dict[str, Any],
    prefix: str = "",
) -> None:
    """One token of each sequence, again and again, and how much of a step the device waits."""
    served.begin(shapes.prompts(num_seqs, shapes.prompt), shapes.num_steps)
    measure = job.device.walled(served.step, shapes.steps)
    for _ in range(shapes.warm_up):
        measure()
    samples = interleaved({"ours": measure}, shapes.rounds)["ours"]
    num_keys = shapes.prompt + shapes.num_steps // 2
    size_bytes = job.device.dtype.itemsize
    work = decode_work(shapes.config, num_seqs, num_keys, size_bytes, served.weight_bytes)
    name = f"{prefix}decode, {num_seqs} x {shapes.prompt} tokens"
    wanted = None if prefix else WANTED.get(num_seqs)
    job.told.show(against_floor(name, samples, floors, work, num_seqs, wanted))
    kept = cases[name] = {"num_keys": num_keys, **to_json(samples, floors, work)}
    path = job.options.artefact(f"decode-{num_seqs}.json.gz")

    def steps() -> None:
        for _ in range(shapes.steps):
            served.step()

    spans = profiled(steps, job.device.synchronize, path, job.device.kind == "cuda")
    path.unlink()  # one for each batch would be many
    if spans:
        kept["device_us"] = busy_us(spans) / shapes.steps
    job.told.show(idle(f"{name}: host", samples, kept.get("device_us")))
    job.told.keep(cases=cases)
    served.end()


def prefill(
    job: StageJob,
    shapes: EngineShapes,
    served: Served,
    floors: Floors,
    num_tokens: int,
    cases: dict[str, Any],
) -> None:
    """A prompt, up to its first token."""
    (prompt,) = shapes.prompts(1, num_tokens)
    measure = job.device.walled(lambda: served.prefill(prompt))
    for _ in range(max(1, shapes.warm_up)):
        measure()
    samples = interleaved({"ours": measure}, shapes.rounds)["ours"]
    work = prefill_work(shapes.config, num_tokens, job.device.dtype.itemsize)
    name = f"prefill, {num_tokens} tokens"
    wanted = WANTED_PREFILL if num_tokens >= WANTED_TOKENS else None
    job.told.show(against_floor(name, samples, floors, work, num_tokens, wanted))
    cases[name] = to_json(samples, floors, work)
    job.told.keep(cases=cases)


def against_floor(
    name: str, samples: Samples, floors: Floors, work: PassWork, num_tokens: int, wanted: float | None
) -> Finding:
    """The row of one shape."""
    floor_us, bound = floors.of(work.num_bytes, work.flops)
    fraction = floor_us / samples.median
    in_ms = Samples(tuple(value / 1e3 for value in samples.values))
    rate = 1e6 * num_tokens / samples.median
    got = f"{in_ms.text(2)} ms, {rate:,.0f} tokens/s, {fraction:.0%} of the floor ({bound})"
    return Finding(name, got) if wanted is None else asked(name, got, f">= {wanted:.0%}", fraction >= wanted)


def idle(name: str, samples: Samples, device_us: float | None) -> Finding:
    """The part of a step in which the device has nothing to do. Its own time is the profiler's, the step's is not."""
    target = f"<= {MOST_IDLE:.0%}"
    if device_us is None:
        return Finding(name, "the profiler saw no kernels", target, Verdict.NOT_RUN)
    part = 1 - device_us / samples.median
    got = f"{part:.1%} of a step the device is idle; it works {device_us:,.0f} us"
    return asked(name, got, target, part <= MOST_IDLE)


def to_json(samples: Samples, floors: Floors, work: PassWork) -> dict[str, Any]:
    floor_us, bound = floors.of(work.num_bytes, work.flops)
    return {
        "ours": samples.to_json("us"),
        "floor_us": floor_us,
        "bound_by": bound,
        "num_bytes": work.num_bytes,
        "flops": work.flops,
    }
