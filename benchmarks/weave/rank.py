"""One rank of `make bench weave`: runs forward passes as it is told, each by another system and over another link.

Every system uses the same weights, cache and kernels; only the communicator and the executor differ. Rank 0 lives in
the benchmark's process and tells the others, which run this file.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from emucxl.links import Link
from emucxl.shared_memory import SharedSegment
from interlace.engine.config import EngineConfig
from interlace.engine.ranks.connect import kernels_for
from interlace.engine.ranks.runner import Runner
from interlace.engine.weaving.random_weights import RandomWeights
from interlace.models.batch import ForwardBatch
from interlace.models.config import ModelConfig, RopeConfig
from interlace.models.sources import LoadedModel, load_model
from tokenweave.communicators import Communicator, LinkedCommunicator, NullCommunicator, ShmCommunicator
from tokenweave.errors import RankError
from tokenweave.kernels import BLOCK_SIZE, ResidualNorms
from tokenweave.plan import Lane

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

WIDE = "wide"
WIDE_CONFIG = ModelConfig(
    family="llama",
    vocab_size=8192,
    hidden_size=1024,
    intermediate_size=2816,
    num_layers=8,
    num_heads=16,
    num_kv_heads=8,
    head_dim=64,
    rms_norm_eps=1e-5,
    max_position=8192,
    rope=RopeConfig(theta=10000.0),
)
NOTHING, UNFUSED, FUSED, WOVEN, AUTO = (
    "no communication",
    "unfused sequential",
    "fused sequential",
    "woven",
    "auto",
)
SYSTEMS = (NOTHING, UNFUSED, FUSED, WOVEN, AUTO)


@dataclass(frozen=True)
class WeaveRankStart:
    """The message that a rank is started with. `ports` holds, for each link, this rank's port."""

    rank: int
    size: int
    model: str
    dtype: str
    max_tokens: int
    segment_fd: int
    segment_size_bytes: int
    symmetric_fd: int
    ports: dict[str, int] = field(default_factory=dict)  # by link, as it is written


@dataclass(frozen=True)
class Trial:
    """One forward pass. `link` None: the ranks exchange through memory, unmodelled."""

    system: str
    link: str | None
    num_tokens: int
    split: int | None = None


@dataclass(frozen=True)
class PassTimes:
    """Seconds of one rank's pass. The compute lane was *blocked* while none of its steps ran."""

    wall_s: float
    blocked_s: float
    compute_s: float
    transfer_s: float  # of the transfer lane's steps, waits included


class _Alone(NullCommunicator):
    """No communication: every rank norms every row of its own partial sum, and keeps its own logits."""

    def gather_columns(self, tensor: Tensor, widths: Sequence[int], root: int = 0) -> Tensor | None:
        return None


class _Unfused(NullCommunicator):
    """All-reduce over `inner`, then residual add and norm of every row on every rank."""

    def __init__(self, inner: Communicator) -> None:
        super().__init__(kernels=inner.kernels)
        self.inner = inner

    def all_reduce_rms_norm(self, hidden: Tensor, residual: Tensor, norms: ResidualNorms) -> Tensor:
        self.inner.all_reduce(hidden)
        return self.kernels.add_rms_norm(hidden, residual, norms)

    def gather_columns(self, tensor: Tensor, widths: Sequence[int], root: int = 0) -> Tensor | None:
        return self.inner.gather_columns(tensor, widths, root)


class WeaveRank:
    """A rank that is ready. `run` and `logits` are collective calls."""

    def __init__(self, start: WeaveRankStart) -> None:
        config = EngineConfig(
            model=start.model,
            tp=start.size,
            dtype=start.dtype,
            threads=1,
            max_num_batched_tokens=start.max_tokens,
            max_model_len=start.max_tokens,
            num_kv_blocks=-(-start.max_tokens // BLOCK_SIZE),
        )
        segment = SharedSegment.attach(start.segment_fd, start.segment_size_bytes)
        kernels = kernels_for(config, start.size)
        self.shm = ShmCommunicator(
            segment, start.rank, start.size, kernels=kernels, symmetric_fd=start.symmetric_fd
        )
        self._ports = {link: Link.attach(fd) for link, fd in start.ports.items()}
        self.runner = Runner(config, model_of(start.model), self.shm, start.size)

    def measure(self, trial: Trial) -> tuple[list[PassTimes], Tensor]:
        """One pass, which all ranks begin together: every rank's outcome, and on rank 0 the logits."""
        self.runner.decoder.communicator = self._communicator(trial)
        spans: list[tuple[Lane, float]] = []
        self.runner.observe = lambda step, start, end: spans.append((step.lane, end - start))
        batch = replace(
            ForwardBatch.prefill(trial.num_tokens, self.runner.model_config.vocab_size), split=trial.split
        )
        self.shm.barrier()
        start = time.perf_counter()
        logits = self.runner.execute(batch)
        wall_s = time.perf_counter() - start
        busy_s = {lane: sum(seconds for on, seconds in spans if on is lane) for lane in Lane}
        compute_s = busy_s[Lane.COMPUTE]
        own = PassTimes(wall_s, wall_s - compute_s, compute_s, busy_s[Lane.TRANSFER])
        return self._together(own), logits

    def tell(self, trial: Trial | None) -> None:
        """Rank 0 alone: have the others measure `trial` too, or end."""
        self.shm.broadcast_bytes(b"" if trial is None else json.dumps(asdict(trial)).encode())

    def _together(self, own: PassTimes) -> list[PassTimes]:
        fields = torch.tensor(list(asdict(own).values()), dtype=torch.float64).view(torch.uint8)
        every = self.shm.all_gather(fields).view(torch.float64).view(self.shm.size, -1)
        return [PassTimes(*row) for row in every.tolist()]

    def close(self) -> None:
        self.runner.close()
        for port in self._ports.values():
            port.close()

    def _communicator(self, trial: Trial) -> Communicator:
        if trial.system == NOTHING:
            return _Alone(kernels=self.shm.kernels)
        port = self._ports[trial.link] if trial.link is not None else None
        linked = self.shm if port is None else LinkedCommunicator(self.shm, port)
        return _Unfused(linked) if trial.system == UNFUSED else linked


def model_of(name: str) -> LoadedModel:
    """A model by name, or the wide one, whose weights are random."""
    if name != WIDE:
        return load_model(name)
    return LoadedModel(WIDE, Path(WIDE), RandomWeights(WIDE_CONFIG, torch.float32))


def main() -> None:
    """Serve rank 0 until it says to stop, or is gone."""
    rank = WeaveRank(WeaveRankStart(**json.loads(sys.argv[1])))
    try:
        while message := rank.shm.broadcast_bytes(None, idle=True):
            rank.measure(Trial(**json.loads(message)))
    except RankError:
        return  # rank 0 says why
    rank.close()


if __name__ == "__main__":
    main()
