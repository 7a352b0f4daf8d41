"""Woven passes of the engine: of one rank, of two that are threads, and of two processes that share the GPU.

The model is a random Llama of few layers, wide enough to fill a GPU. A prompt runs on streams when it comes first, is
captured when it comes again, and is replayed from then on. Two processes reduce by the fused operation over symmetric
memory; they take turns on the one GPU, so their times say nothing.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.device import Device, relative_error
from benchmarks.gpu.findings import Finding, Verdict, asked
from benchmarks.gpu.spans import profiled
from benchmarks.gpu.stage import StageJob
from benchmarks.serve.random_model import LlamaShape, write_model
from emucxl.bench.harness import Samples, interleaved
from interlace.engine.config import EngineConfig
from interlace.engine.ranks.group import RankGroup
from interlace.engine.ranks.launch import start
from interlace.errors import BenchError
from interlace.models.batch import ForwardBatch
from tokenweave.kernels import BLOCK_SIZE, blocks_for

BOUND = {
    torch.bfloat16: 3e-2,
    torch.float32: 1e-4,
}  # of the logits' relative error beside those of whole passes
IN_ORDER, ONE, THREADS, PROCESSES = "one rank, in order", "one rank", "two threads", "two processes"
SHARED_GPU = "TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"  # lets two processes join symmetric memory on one GPU
TIMEOUT_S = 20.0  # of a rank that waits for the other in vain
RANKS: dict[str, dict[str, Any]] = {
    IN_ORDER: {"executor": "sequential", "replay": False},
    ONE: {},
    THREADS: {"tp": 2, "communicator": "thread"},
    PROCESSES: {"tp": 2, "communicator": "symm_mem"},
}


@dataclass(frozen=True)
class WovenShapes:
    """The model, and the batches that it runs."""

    model: LlamaShape
    prompt: int  # tokens of the one sequence of the first batch
    num_seqs: int  # of the second batch, which have a token each
    num_keys: int  # that each of these sees
    rounds: int  # of timing; 0: none

    @property
    def num_blocks(self) -> int:
        return blocks_for(self.prompt) + self.num_seqs * blocks_for(self.num_keys)

    def batches(self) -> dict[str, ForwardBatch]:
        """A prompt with some rows of logits, and sequences that decode, in blocks behind those of the prompt."""
        prompt = ForwardBatch.prefill(self.prompt, self.model.vocab_size)
        rows = torch.arange(0, self.prompt, max(1, self.prompt // 8), dtype=torch.int32)
        return {
            "prompt": replace(prompt, logit_rows=rows),
            "decode": decoding(self.num_seqs, self.num_keys, blocks_for(self.prompt), self.model.vocab_size),
        }


FULL = WovenShapes(LlamaShape(2048, 4, 16, 8, 8192, 8192), prompt=2048, num_seqs=64, num_keys=300, rounds=5)
DRY = WovenShapes(LlamaShape(32, 1, 2, 2, 32, 300), prompt=4, num_seqs=2, num_keys=3, rounds=0)


def decoding(num_seqs: int, num_keys: int, first_block: int, vocab_size: int) -> ForwardBatch:
    """One token of each sequence, the last of `num_keys`; the keys before it are whatever the blocks hold."""
    each = torch.arange(num_seqs, dtype=torch.int32)
    tables = first_block + torch.arange(num_seqs * blocks_for(num_keys), dtype=torch.int32).view(num_seqs, -1)
    at = num_keys - 1
    return ForwardBatch(
        token_ids=(each * 7919) % vocab_size,
        positions=torch.full_like(each, at),
        slots=tables[:, at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE,
        query_start=torch.arange(num_seqs + 1, dtype=torch.int32),
        seq_lens=torch.full_like(each, num_keys),
        block_tables=tables,
        logit_rows=each,
        prompt_lens=torch.full_like(each, at),
    )


def run(job: StageJob) -> None:
    shapes = DRY if job.options.is_dry_run else FULL
    os.environ[SHARED_GPU] = "1"
    failed: dict[str, str] = {}
    kept: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "model"
        write_model(shapes.model, directory, None, lambda done, what: None)
        oracle: dict[str, Tensor] = {}
        for ranks, options in RANKS.items():
            try:
                with started(job, shapes, directory, options) as group:
                    found = passes_of(job.device, group, shapes)
                    oracle = oracle or {name: each.whole for name, each in found.items()}
                    job.told.show(*findings(ranks, found, oracle, job.device.dtype))
                    if shapes.rounds:
                        kept[ranks] = {
                            name: times.to_json("us") for name, times in timed(job, group, shapes).items()
                        }
                        job.told.keep(pass_us=kept)
                    if ranks != IN_ORDER:
                        order_of(job, group, shapes, ranks)
            except Exception as error:
                failed[ranks] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    if failed:
        raise BenchError("; ".join(f"{ranks}: {reason}" for ranks, reason in failed.items()))


@contextmanager
def started(
    job: StageJob, shapes: WovenShapes, directory: Path, options: dict[str, Any]
) -> Iterator[RankGroup]:
    """The ranks of an engine that weaves what it is told to."""
    if job.options.is_dry_run and options.get("communicator") == "symm_mem":
        options = options | {"communicator": "auto"}  # gloo, where kernels are interpreted
    config = EngineConfig(
        str(directory),
        device="cuda",
        weave="never",  # but where a batch says so
        dtype=str(job.device.dtype).removeprefix("torch."),
        max_num_seqs=shapes.num_seqs,
        max_num_batched_tokens=max(shapes.prompt, shapes.num_seqs),
        num_kv_blocks=shapes.num_blocks,
        max_model_len=max(shapes.prompt, shapes.num_keys) + 1,
        timeout_s=TIMEOUT_S,
        **options,
    )
    group = start(config)
    try:
        yield group
    finally:
        group.close()


@dataclass(frozen=True)
class Passes:
    """The logits of one batch, (num_logits, vocab) each."""

    whole: Tensor
    woven: Tensor
    again: Tensor  # woven, once it is replayed, if it ever is
    num_replayed: int
    refusal: str | None  # why passes are not captured


def passes_of(device: Device, group: RankGroup, shapes: WovenShapes) -> dict[str, Passes]:
    """Every batch, whole and woven."""

    def logits(batch: ForwardBatch) -> Tensor:
        found = group.execute(batch)
        device.synchronize()
        return found.clone()

    def num_replayed() -> int:
        return 0 if group.runner.graphs is None else group.runner.graphs.num_replayed

    found = {}
    for name, batch in shapes.batches().items():
        whole, before = logits(batch), num_replayed()
        woven, _, again = (logits(woven_of(batch)) for _ in range(3))
        refusal = None if group.runner.graphs is None else group.runner.graphs.refusal
        found[name] = Passes(whole, woven, again, num_replayed() - before, refusal)
    return found


def woven_of(batch: ForwardBatch, later: int = 0) -> ForwardBatch:
    """The batch, cut in its middle, or some rows later."""
    return replace(batch, split=batch.num_tokens // 2 + later)


def timed(job: StageJob, group: RankGroup, shapes: WovenShapes) -> dict[str, Samples]:
    """The times of all batches, whole and woven, from an idle device until it is idle again."""
    whole = shapes.batches()
    calls = whole | {f"{name}, woven": woven_of(batch) for name, batch in whole.items()}
    measures = {
        name: job.device.walled(lambda batch=batch: group.execute(batch))  # type: ignore[misc]
        for name, batch in calls.items()
    }
    return interleaved(measures, shapes.rounds)


def findings(
    ranks: str, found: dict[str, Passes], oracle: dict[str, Tensor], dtype: torch.dtype
) -> Iterator[Finding]:
    """A row for the passes of these ranks, and one for what graphs did with them."""
    errors = {
        f"{name}, {what}": relative_error(logits, oracle[name])
        for name, each in found.items()
        for what, logits in (("whole", each.whole), ("woven", each.woven), ("replayed", each.again))
    }
    worst = max(errors, key=lambda name: errors[name])
    is_met = all(error < BOUND[dtype] for error in errors.values())
    got = f"off by {errors[worst]:.1e} at most ({worst})"
    yield asked(f"the engine, {ranks}: woven passes are whole", got, f"< {BOUND[dtype]:.0e}", is_met)
    if ranks == IN_ORDER:
        return
    what = f"the engine, {ranks}: woven in graphs"
    refusal = next((each.refusal for each in found.values() if each.refusal is not None), None)
    num_replayed = sum(each.num_replayed for each in found.values())
    if not num_replayed:
        yield Finding(what, refusal or "nothing was replayed", "", Verdict.NOT_RUN)
        return
    is_same = all(torch.equal(each.woven, each.again) for each in found.values())
    bits = "the same bits as on streams" if is_same else "other bits than on streams"
    yield Finding(what, f"{num_replayed} passes replayed, {bits}")


def order_of(job: StageJob, group: RankGroup, shapes: WovenShapes, ranks: str) -> None:
    """Keeps the order of rank 0's kernels in a woven prompt, as a trace, as spans and as a picture.

    The prompt is cut where none was before, so that it runs on streams.
    """
    batch = woven_of(shapes.batches()["prompt"], later=1)
    path = job.options.artefact("woven.json.gz")
    spans = profiled(lambda: group.execute(batch), job.device.synchronize, path, job.device.kind == "cuda")
    job.told.keep(
        woven_kernels=[asdict(span) for span in spans], woven_trace={"file": path.name, "ranks": ranks}
    )
    what = f"order of a woven prompt's kernels ({path.name})"
    if not spans:
        job.told.show(Finding(what, "the profiler saw none", "", Verdict.NOT_RUN))
        return
    from benchmarks.gpu.picture import draw  # which finds `svg` where a stage does, among the documentation's

    picture = job.options.artefact("woven.svg")
    about = (
        f"{shapes.prompt} tokens through {shapes.model.num_layers} layers; {ranks} on one {job.device.name}"
    )
    picture.write_text(draw(spans, "The order of the engine's kernels in a woven pass", about))
    streams = len({span.stream for span in spans})
    job.told.show(Finding(what, f"{ranks}: {len(spans)} on {streams} streams; drawn in {picture.name}"))
