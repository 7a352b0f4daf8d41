"""The trial pass: how much of a GPU's memory a pass takes beside weights and cache, found out by running the widest.

So the KV cache is sized by what is left, and not by a guess. It also compiles the kernels that prompts need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from interlace.engine.cache.kv_cache import KVCache
from interlace.engine.cache.sizing import free_device_bytes
from interlace.errors import EngineError
from interlace.models.batch import ForwardBatch
from interlace.models.footprint import formats_of, weights_bytes
from tokenweave.execute import run_sequential
from tokenweave.kernels import blocks_for
from tokenweave.plan import plan_forward

if TYPE_CHECKING:
    from interlace.engine.cache.layout import CacheLayout
    from interlace.models.decoder import Decoder
    from interlace.models.shard import Shard
    from interlace.models.weights import WeightSource


@torch.inference_mode()
def bytes_of_a_pass(decoder: Decoder, layout: CacheLayout, num_tokens: int, num_seqs: int) -> int:
    """Bytes that a pass takes at most, of `num_tokens` tokens of `num_seqs` sequences or fewer; 0 on the CPU.

    A collective call, of all ranks and all on GPUs.
    """
    device = decoder.kernels.device
    if device.type != "cuda":
        return 0
    cache = KVCache(decoder.kernels, layout, num_blocks=1)
    try:
        return peak_bytes(lambda: run_widest(decoder, cache.tensor, num_tokens, num_seqs), device)
    finally:
        cache.close()


def run_widest(decoder: Decoder, cache: torch.Tensor, num_tokens: int, num_seqs: int) -> torch.Tensor:
    """Runs a pass of `num_tokens`, with the logits of `num_seqs` rows. Its sequences share one block of `cache`.

    Of fewer tokens where the sequences' contexts together are shorter than that.
    """
    num_tokens = min(num_tokens, num_seqs * decoder.max_model_len)
    num_seqs = min(num_seqs, num_tokens)
    rows = torch.arange(num_tokens, dtype=torch.int32)
    starts = torch.linspace(0, num_tokens, num_seqs + 1).to(torch.int32)
    lengths = starts.diff()
    batch = ForwardBatch(
        token_ids=rows % decoder.config.vocab_size,
        positions=rows - starts[:-1].repeat_interleave(lengths),
        slots=torch.zeros_like(rows),
        query_start=starts,
        seq_lens=lengths,
        block_tables=torch.zeros(num_seqs, blocks_for(int(lengths.max())), dtype=torch.int32),
        logit_rows=starts[1:] - 1,
        prompt_lens=lengths,
    )
    plan = plan_forward(decoder.config.num_layers, num_tokens)
    decoder.communicator.begin_pass()
    forward = decoder.forward(plan, batch, cache)
    run_sequential(plan, forward.handlers)
    return forward.logits


@contextmanager
def told_of_device(
    device: torch.device, source: WeightSource, shard: Shard, dtype: torch.dtype, quantize: str
) -> Iterator[None]:
    """Around the loading of weights: where `device` has no room for them, the error says how much it has and they take.

    Raises:
        EngineError: it has no room.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        free_bytes = free_device_bytes(device)
        wanted = weights_bytes(source.config, shard, dtype.itemsize, formats_of(source, quantize))
        raise EngineError(
            f"{device} has no room for this rank's weights: as {dtype} they take {wanted / 1e9:.2f} GB; "
            f"{free_bytes / 1e9:.2f} GB are free beside those that were loaded: raise tp, or quantize, or see what "
            f"else takes its memory ({str(error).partition(chr(10))[0]})"
        ) from error


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Bytes that torch took on `device` while `run` was at work, beyond what it had. They are given back after it."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.empty_cache()
    return peak - before
