"""Programs for the ranks of a group that decode with and without replay. Each takes the rank's communicator first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from interlace.engine.config import EngineConfig
from interlace.engine.ranks.runner import Runner
from interlace.models.sources import load_model
from support.driver import Driver
from support.tiny_models import VOCAB_SIZE
from tokenweave.communicators import Communicator

Outcome = tuple[Tensor, int, str | None]  # the logits of all passes, passes that were replayed, why not


def decode(
    communicator: Communicator, model: Path, sizes: Sequence[int], replaying: Sequence[int], seed: int
) -> Outcome:
    """Prefills `max(sizes)` sequences, then decodes `sizes[i]` of them in pass i. `replaying`: ranks that replay."""
    config = EngineConfig(
        str(model), tp=communicator.size, dtype="float32", num_kv_blocks=64, threads=1, weave="never",
        executor="sequential", replay=communicator.rank in replaying,
    )  # fmt: skip
    if communicator.name == "shm":  # what there is to reserve was reserved when the group was made
        setattr(communicator, "reserve_activations", lambda *shape: None)  # noqa: B010 - a method
    runner = Runner(config, load_model(str(model)), communicator, communicator.size)
    generator = torch.Generator().manual_seed(seed)
    lengths = [3 + 5 * s for s in range(max(sizes))]
    tokens = torch.randint(0, VOCAB_SIZE, (len(lengths), 100), generator=generator).tolist()
    driver = Driver(runner, [row[: n + len(sizes)] for row, n in zip(tokens, lengths, strict=True)])
    logits = [torch.cat(driver.run(list(enumerate(lengths)))).clone()]
    for size in sizes:
        chosen = torch.randperm(len(lengths), generator=generator)[:size].tolist()
        logits.append(torch.cat(driver.run([(s, 1) for s in chosen])).clone())
    replayer = runner.replayer
    return torch.cat(logits), replayer.num_replayed if replayer else 0, replayer and replayer.refusal
