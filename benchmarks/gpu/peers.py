"""The engine beside a plain loop and beside transformers, on the same random weights of Llama-3-8B's shapes.

The peers never fetch a token; the engine brings each step's tokens to its caller. What is compiled runs in CUDA graphs.
transformers is run as it is, and compiled as a whole: that takes long, so it comes last, and only where there is time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from benchmarks.gpu.device import Call, Device, Measure, check_close
from benchmarks.gpu.engine import BOUND, CHECKED_TOKENS, EngineShapes, shapes_of
from benchmarks.gpu.findings import Finding, Verdict
from benchmarks.gpu.plain import PlainLoop
from benchmarks.gpu.served import Served
from benchmarks.gpu.stage import StageJob
from benchmarks.gpu.transformers_peer import TransformersPeer
from benchmarks.gpu.weights import RandomWeights
from emucxl.bench.harness import Samples, interleaved

T = TypeVar("T")
OURS, TRANSFORMERS = "ours", "transformers"
COMPILE_S = 60.0  # what torch may take to compile transformers' model
COMPILED_BATCHES = (1, 64)


class Peer(Protocol):
    """A model that decodes all sequences at one length."""

    is_captured: bool  # whether its steps run as a graph: a host that looks at the device cannot be captured

    def new_cache(self, num_seqs: int, max_len: int) -> Any: ...

    def prefill(self, ids: Tensor, cache: Any) -> Tensor: ...

    def prefill_alone(self, ids: Tensor) -> Tensor: ...

    def decode(self, ids: Tensor, cache: Any) -> Tensor: ...


@dataclass(frozen=True)
class Comparison:
    """The engine and the peers, on one device."""

    job: StageJob
    shapes: EngineShapes
    served: Served
    kept: dict[str, Any]

    @property
    def device(self) -> Device:
        return self.job.device

    def peers(self, makers: dict[str, Callable[[], Peer]]) -> dict[str, Peer]:
        """The peers that run. Their logits of a prompt and of a step after it are beside the engine's.

        Raises:
            ArithmeticError: somebody's are far from the engine's.
        """
        (ids,) = self.shapes.prompts(1, self.shapes.checked)
        expected, bound = self.served.logits(ids), BOUND[self.device.dtype]
        made: dict[str, Peer] = {}
        logits: dict[str, Tensor] = {}
        for name, make in makers.items():
            self._try(made, name, make)
        for name, peer in made.items():
            self._try(logits, name, partial(logits_of, self.device, peer, ids))
        for name, found in logits.items():
            off = check_close(f"{name}'s logits beside the engine's", found, expected, bound)
            self.job.told.show(Finding(f"{name}: logits beside the engine's", f"off by {off:.1e}"))
        return {name: made[name] for name in logits}

    def decode(self, num_seqs: int, peers: dict[str, Peer]) -> None:
        """Steps in which each of `num_seqs` sequences gets a token."""
        shapes = self.shapes
        self.served.begin(shapes.prompts(num_seqs, shapes.prompt), shapes.num_steps)
        steps: dict[str, Call] = {OURS: self.served.step}
        for name, peer in peers.items():
            self._try(steps, name, partial(step_of, self.device, peer, num_seqs, shapes))
        measures = {name: self.device.walled(step, shapes.steps) for name, step in steps.items()}
        for measure in measures.values():
            for _ in range(shapes.warm_up):
                measure()
        self._tell(f"decode, {num_seqs} x {shapes.prompt} tokens, beside {' and '.join(peers)}", measures)
        self.served.end()

    def prefill(self, num_tokens: int, peers: dict[str, Peer]) -> None:
        """A prompt of `num_tokens`, up to its first token."""
        (prompt,) = self.shapes.prompts(1, num_tokens)
        ids = torch.tensor([prompt], device=self.device.kind)
        calls: dict[str, Call] = {OURS: partial(self.served.prefill, prompt)}
        for _ in range(max(1, self.shapes.warm_up)):
            calls[OURS]()
        for name, peer in peers.items():
            self._try(calls, name, partial(once_called, partial(peer.prefill_alone, ids)))
        measures = {name: self.device.walled(call) for name, call in calls.items()}
        self._tell(f"prefill, {num_tokens} tokens, beside {' and '.join(peers)}", measures)

    def _try(self, found: dict[str, T], name: str, make: Callable[[], T]) -> None:
        """Adds what a peer gives. One that fails is a row of the table, and the others go on."""
        try:
            found[name] = make()
        except Exception as error:
            words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            self.job.told.show(Finding(name, words, "", Verdict.NOT_RUN))

    def _tell(self, name: str, measures: dict[str, Measure]) -> None:
        found = interleaved(measures, self.shapes.rounds)
        self.kept[name] = {system: samples.to_json("us") for system, samples in found.items()}
        self.job.told.keep(peers=self.kept)
        self.job.told.show(beside(name, found))


def run(job: StageJob) -> None:
    device, shapes = job.device, shapes_of(job)
    weights = RandomWeights(shapes.config, device)
    served = Served.on(device, weights, max(shapes.batches), shapes.num_tokens)
    try:
        comparison = Comparison(job, shapes, served, {})
        peers = comparison.peers(
            {
                "plain loop": partial(PlainLoop, weights, device),
                TRANSFORMERS: partial(TransformersPeer, weights, device),
            }
        )
        if not peers:
            return
        for num_seqs in shapes.batches:
            comparison.decode(num_seqs, peers)
        for num_tokens in shapes.prefills:
            comparison.prefill(num_tokens, peers)
        if TRANSFORMERS in peers:
            beside_compiled(comparison, weights)
    finally:
        served.close()


def beside_compiled(comparison: Comparison, weights: RandomWeights) -> None:
    """Decoding beside transformers' compiled model, where there is time to compile it."""
    job, batches = comparison.job, comparison.shapes.batches
    for num_seqs in [each for each in batches if each in COMPILED_BATCHES] or batches:
        if job.left_s < COMPILE_S and not job.options.is_dry_run:
            what = f"transformers, compiled, {num_seqs} sequences"
            job.told.show(Finding(what, f"{job.left_s:.0f} s are left", "", Verdict.NOT_RUN))
            continue
        compiled = TransformersPeer(weights, job.device, is_compiled=True)
        comparison.decode(num_seqs, {f"{TRANSFORMERS}, compiled": compiled})


@torch.inference_mode()
def logits_of(device: Device, peer: Peer, ids: list[int]) -> Tensor:
    """A peer's logits (2, vocab) after all but the last of `ids`, and after the last."""
    given, cache = torch.tensor([ids], device=device.kind), peer.new_cache(1, len(ids))
    return torch.cat([peer.prefill(given[:, :-1], cache), peer.decode(given[:, -1:], cache)]).float()


def step_of(device: Device, peer: Peer, num_seqs: int, shapes: EngineShapes) -> Call:
    """A peer's step: it feeds itself with the largest logit of each sequence, and nobody looks at it."""
    prompts = torch.tensor(shapes.prompts(num_seqs, shapes.prompt), device=device.kind)
    # What captures and compiles takes a few steps of its own.
    cache = peer.new_cache(num_seqs, shapes.prompt + shapes.num_steps + CHECKED_TOKENS)
    ids = largest(peer.prefill(prompts, cache))

    def step() -> None:
        ids.copy_(largest(peer.decode(ids, cache)))

    step()
    return device.captured(step) if peer.is_captured else step


def once_called(call: Call) -> Call:
    """`call`, for which everything has been compiled."""
    call()
    return call


def largest(logits: Tensor) -> Tensor:
    """The ids of the largest logits, (num_seqs, 1)."""
    return logits.argmax(-1, keepdim=True)


def beside(name: str, found: dict[str, Samples]) -> Finding:
    """The row of one shape."""
    ours = found[OURS]
    ratios = [f"{other} {found[other].over(ours).text(2)}" for other in found if other != OURS]
    got = f"{ours.median / 1e3:.2f} ms; times as long: {', '.join(ratios) or 'nobody'}"
    return Finding(name, got)
