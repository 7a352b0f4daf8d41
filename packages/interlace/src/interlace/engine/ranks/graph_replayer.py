"""GraphReplayer: runs one rank's passes on a GPU as graphs, and captures them.

Passes that decode are filled up to one of a few sizes (`interlace.models.padding`) and captured the first time that a
size comes, or when the engine starts. Any other pass is captured when its shapes come a second time. A graph has the
whole pass in it, with what ranks exchange, woven or not, up to the logits: a step of the engine is then one copy of
integers and one call.

Ranks need not agree: a graph queues the same collectives as a pass that runs step by step. But whether passes that
decode are padded is the same on all ranks; so a rank that is told to observe, or that could not capture, pads as well.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interlace.engine.ranks.captures import Captures
from interlace.models.decoder import Forward
from interlace.models.padding import (
    is_decoding,
    nothing_but_padding,
    padded,
    row_bucket,
    row_buckets,
    width_bucket,
)
from interlace.models.placement import StaticIndices
from tokenweave.errors import GraphError
from tokenweave.geometry import parts_of
from tokenweave.graphs import CudaGraphs

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from interlace.models.batch import ForwardBatch
    from interlace.models.decoder import Decoder
    from interlace.models.parts import PassInputs
    from tokenweave.execute import Handler, Observer
    from tokenweave.graphs import Graph, GraphBackend
    from tokenweave.kernels import Kernels
    from tokenweave.ops import Operation
    from tokenweave.plan import Plan

    Observing = Callable[[Plan], Observer | None]
    RunPlan = Callable[[Plan, Mapping[Operation, Handler], Observer | None], None]

MAX_DECODING = 64  # graphs of passes that decode; their memory is one pool, each adds what its launches take
MAX_OTHERS = 16
_log = logging.getLogger("interlace")


def graphs_on(kernels: Kernels) -> GraphBackend | None:
    """Returns what captures the passes of these kernels; None where they run on no GPU, or store what only fills up."""
    if kernels.name != "cuda" or kernels.device.type != "cuda":
        return None
    return CudaGraphs(kernels.device)


@dataclass(frozen=True)
class _Captured:
    """A graph, and what it reads."""

    graph: Graph
    memory: StaticIndices
    tables: tuple[Tensor, ...]


class GraphReplayer:
    """The graphs of one rank, the least recently used forgotten first.

    Thread safety: none.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: Tensor,
        graphs: GraphBackend,
        run: RunPlan,
        max_num_seqs: int,
        max_blocks: int,
    ) -> None:
        """`run` issues a plan's steps. Passes that decode have up to `max_num_seqs` rows, of up to `max_blocks` each.

        Takes memory for the logits of `max_num_seqs` rows, on the rank that gathers them.
        """
        self._decoder, self._cache, self._graphs, self._run = decoder, cache, graphs, run
        self._max_rows, self._max_blocks = max_num_seqs, max_blocks
        self._decoding: Captures[_Captured] = Captures(MAX_DECODING)
        self._others: Captures[_Captured] = Captures(MAX_OTHERS)
        self.refusal = decoder.communicator.no_graph_reason  # why passes are not captured, or no more
        self.num_replayed = 0  # passes
        self._is_in_use = self.refusal is None
        self._gathers = decoder.communicator.rank == 0
        rows = max_num_seqs if self._gathers and self._is_in_use else 0
        shape = (rows, decoder.config.vocab_size)
        self._logits = torch.empty(shape, dtype=torch.float32, device=decoder.kernels.device)
        if self._is_in_use:
            for rotations in decoder.rotations:
                rotations.complete()

    def execute(self, batch: ForwardBatch, observing: Observing | None = None) -> Tensor | None:
        """Runs a pass over `batch`: by its graph, or to capture it, or step by step where an observer is told of steps.

        `observing` gives the observer of a plan. Returns the logits that were asked for, (num_logits, vocab_size)
        float32 on the device, until the next pass; on ranks that do not gather them, (0, vocab_size). None where the
        pass is to be run as it is: nothing ran.
        """
        num_logits, decodes = len(batch.logit_rows), is_decoding(batch)
        if not self._is_in_use or num_logits > self._max_rows:
            return None
        if decodes:
            batch = self._padded(batch)
        inputs = self._decoder.inputs(batch, parts_of(batch.num_tokens, batch.split))
        shapes = inputs.key
        if shapes is None:
            return None
        key, captures = (batch.split, shapes), self._decoding if decodes else self._others
        captured = None if observing is not None else captures.find(key)
        if captured is not None:
            self._replay(captured, inputs)
        elif observing is not None or self.refusal is not None:
            if not decodes:
                return None
            self._work(batch, inputs, observing=observing)()
        elif decodes or captures.comes_again(key):
            self._capture(key, captures, batch, inputs)
        else:
            return None
        return self._logits[:num_logits]

    @torch.inference_mode()
    def capture_decoding(self, tell: Callable[[int, int], object]) -> None:
        """Captures passes that decode short sequences, of every size. A collective call.

        `tell` is called with how many of how many are done, before the first and after each.
        """
        buckets = row_buckets(self._max_rows)
        width = width_bucket(1, self._max_blocks)
        for done, rows in enumerate(reversed(buckets)):  # the largest first: its memory does for all others
            if self.refusal is not None:
                return
            tell(done, len(buckets))
            self.execute(nothing_but_padding(rows, width))
        tell(len(buckets), len(buckets))

    def close(self) -> None:
        """Lets go of the graphs and of their memory."""
        self._decoding.clear()
        self._others.clear()

    def _padded(self, batch: ForwardBatch) -> ForwardBatch:
        rows = row_bucket(batch.num_tokens, self._max_rows)
        return padded(batch, rows, width_bucket(batch.block_tables.shape[1], self._max_blocks))

    def _replay(self, captured: _Captured, inputs: PassInputs) -> None:
        self._decoder.communicator.check()
        captured.memory.fill(inputs.groups)
        captured.graph.replay()
        self.num_replayed += 1

    def _capture(
        self, key: Hashable, captures: Captures[_Captured], batch: ForwardBatch, inputs: PassInputs
    ) -> None:
        """Runs the pass, and captures it. If that fails, no other is captured."""
        memory = StaticIndices(inputs.groups, self._decoder.kernels.device)
        try:
            graph = self._graphs.capture(self._work(batch, inputs, memory))
        except GraphError as error:
            self.refusal = str(error)
            _log.warning(
                "%s; from now on passes run step by step. A smaller kv_cache_gb leaves graphs more memory, "
                "replay=False does without them",
                error,
            )
        else:
            captures.add(key, _Captured(graph, memory, inputs.tables))

    def _work(
        self,
        batch: ForwardBatch,
        inputs: PassInputs,
        memory: StaticIndices | None = None,
        observing: Observing | None = None,
    ) -> Callable[[], None]:
        """Returns the work of a pass, logits included; with `memory` it reads its integers there."""
        decoder = self._decoder
        plan = batch.plan(decoder.config.num_layers)

        def work() -> None:
            decoder.communicator.begin_pass()
            # A new one each time: a pass holds on to its tensors, and a graph's are to go back to its pool.
            parts = inputs.parts_on(decoder.kernels.device) if memory is None else inputs.parts_in(memory)
            forward = Forward(decoder, plan, batch, self._cache, parts)
            self._run(plan, forward.handlers, None if observing is None else observing(plan))
            if self._gathers:
                self._logits[: len(forward.logits)].copy_(forward.logits)

        return work
