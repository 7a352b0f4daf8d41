"""Woven passes of the engine: two ranks, as threads, on the one GPU, one step after the other, on streams, in graphs.

The model is a random Llama of few layers, wide enough to fill a GPU. Each way to run it has an engine of its own.
"""

from __future__ import annotations

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
from interlace.models.batch import ForwardBatch
from tokenweave.kernels import BLOCK_SIZE, blocks_for

SIZE = 2  # ranks
BOUND = {
    torch.bfloat16: 3e-2,
    torch.float32: 1e-4,
}  # of the logits' relative error beside those of whole passes
WHOLE, ORACLE, ON_STREAMS, IN_GRAPHS = (
    "whole",
    "woven, one step after the other",
    "woven on streams",
    "woven in graphs",
)
WAYS: dict[str, dict[str, Any]] = {
    WHOLE: {"weave": "never", "executor": "sequential", "replay": False},
    ORACLE: {"weave": "always", "executor": "sequential", "replay": False},
    ON_STREAMS: {"weave": "always", "executor": "lanes", "replay": False},
    IN_GRAPHS: {"weave": "always", "executor": "lanes", "replay": True},
}
PASSES = 3  # until one is replayed: the first of its size, and the one that is captured, come before it


@dataclass(frozen=True)
class WovenShapes:
    """The model, and the batches that it runs."""

    model: LlamaShape
    prompt: int  # tokens of the one sequence of the first batch
    num_seqs: int  # of the second batch, which have a token each
    num_keys: int  # that each of these sees
    rounds: int

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
DRY = WovenShapes(LlamaShape(32, 1, 2, 2, 32, 300), prompt=4, num_seqs=2, num_keys=3, rounds=1)


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
    shapes = DRY if job.options.is_dry_run else replace(FULL, rounds=2) if job.options.is_quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "model"
        write_model(shapes.model, directory, None, lambda done, what: None)
        logits: dict[str, dict[str, Tensor]] = {}
        times: dict[str, dict[str, Any]] = {}
        for way, options in WAYS.items():
            with started(job.device, shapes, directory, options) as group:
                logits[way] = {
                    name: result_of(job.device, group, batch, PASSES if options["replay"] else 1)
                    for name, batch in shapes.batches().items()
                }
                job.told.show(*findings(logits, job.device.dtype))
                if (graphs := group.runner.graphs) is not None and graphs.refusal is not None:
                    job.told.show(Finding(way, f"ran on streams: {graphs.refusal}"))
                times[way] = {
                    name: samples.to_json("us") for name, samples in timed(job.device, group, shapes).items()
                }
                job.told.keep(pass_us=times)
                if way == ON_STREAMS:
                    order_of(job, group, shapes)


@contextmanager
def started(
    device: Device, shapes: WovenShapes, directory: Path, options: dict[str, Any]
) -> Iterator[RankGroup]:
    """The ranks of one way."""
    config = EngineConfig(
        str(directory),
        device="cuda",
        tp=SIZE,
        communicator="thread",
        dtype=str(device.dtype).removeprefix("torch."),
        max_num_seqs=shapes.num_seqs,
        max_num_batched_tokens=max(shapes.prompt, shapes.num_seqs),
        num_kv_blocks=shapes.num_blocks,
        max_model_len=max(shapes.prompt, shapes.num_keys) + 1,
        **options,
    )
    group = start(config)
    try:
        yield group
    finally:
        group.close()


def result_of(device: Device, group: RankGroup, batch: ForwardBatch, num_passes: int) -> Tensor:
    """The logits of the last of so many passes."""
    for _ in range(num_passes):
        found = group.execute(batch)
    device.synchronize()
    return found.clone()


def timed(device: Device, group: RankGroup, shapes: WovenShapes) -> dict[str, Samples]:
    """The time of each batch, from an idle device until it is idle again."""
    measures = {
        name: device.walled(lambda batch=batch: group.execute(batch))  # type: ignore[misc]
        for name, batch in shapes.batches().items()
    }
    return interleaved(measures, shapes.rounds)


def findings(logits: dict[str, dict[str, Tensor]], dtype: torch.dtype) -> Iterator[Finding]:
    """A row for each way that has run beside those before it."""
    for way, found in logits.items():
        if way == WHOLE:
            continue
        errors = {name: relative_error(each, logits[WHOLE][name]) for name, each in found.items()}
        worst = max(errors, key=lambda name: errors[name])
        got = f"off by {errors[worst]:.1e} ({worst})"
        if way != ORACLE:
            is_same = all(torch.equal(each, logits[ORACLE][name]) for name, each in found.items())
            got += ", the same bits as one step after the other" if is_same else ", other bits"
        is_met = all(error < BOUND[dtype] for error in errors.values())
        yield asked(f"the engine, {SIZE} ranks, {way}, is whole", got, f"< {BOUND[dtype]:.0e}", is_met)


def order_of(job: StageJob, group: RankGroup, shapes: WovenShapes) -> None:
    """Keeps the order of the kernels of a woven prompt, as a trace, as spans and as a picture."""
    batch = shapes.batches()["prompt"]
    path = job.options.artefact("woven.json.gz")
    spans = profiled(lambda: group.execute(batch), job.device.synchronize, path, job.device.kind == "cuda")
    job.told.keep(woven_kernels=[asdict(span) for span in spans], woven_trace=path.name)
    what = f"order of a woven prompt's kernels ({path.name})"
    if not spans:
        job.told.show(Finding(what, "the profiler saw none", "", Verdict.NOT_RUN))
        return
    from benchmarks.gpu.picture import draw  # which finds `svg` where a stage does, among the documentation's

    picture = job.options.artefact("woven.svg")
    about = f"{shapes.prompt} tokens through {shapes.model.num_layers} layers, {SIZE} ranks on one {job.device.name}"
    picture.write_text(draw(spans, "The order of the engine's kernels in a woven pass", about))
    streams = len({span.stream for span in spans})
    job.told.show(Finding(what, f"{len(spans)} on {streams} streams; drawn in {picture.name}"))
