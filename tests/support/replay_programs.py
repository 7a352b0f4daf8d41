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
from support.rank_groups import Workers, make_ranks
from support.tiny_models import VOCAB_SIZE
from tokenweave.communicators import Communicator
from tokenweave.kernels import make_kernels

Outcome = tuple[Tensor, int, str | None]  # the logits of all passes, passes that were replayed, why not


def decode(
    communicator: Communicator,
    model: Path,
    sizes: Sequence[int],
    replaying: Sequence[int],
    seed: int,
    splits: Sequence[int | None] | None = None,
    dtype: str = "float32",
) -> Outcome:
    """Prefills `max(sizes)` sequences, then decodes `sizes[i]` of them in pass i. `replaying`: ranks that replay.

    With `splits`, pass i is cut before row `splits[i]`, and the lanes run it.
    """
    config = EngineConfig(
        str(model), tp=communicator.size, dtype=dtype, num_kv_blocks=64, threads=1, weave="never",
        executor="lanes" if splits else "sequential", replay=communicator.rank in replaying,
    )  # fmt: skip
    if communicator.name == "shm" or communicator.name.startswith("shm over"):
        # What there is to reserve was reserved when the group was made.
        setattr(communicator, "reserve_activations", lambda *shape: None)  # noqa: B010 - a method
    if communicator.size > 1 and communicator.kernels.name != "native":
        communicator.kernels = make_kernels("native", 1)
    runner = Runner(config, load_model(str(model)), communicator, communicator.size)
    try:
        return _decode(runner, sizes, splits or [None] * len(sizes), seed)
    finally:
        if runner.lanes is not None:
            runner.lanes.close()


def _decode(runner: Runner, sizes: Sequence[int], splits: Sequence[int | None], seed: int) -> Outcome:
    generator = torch.Generator().manual_seed(seed)
    lengths = [3 + 5 * s for s in range(max(sizes))]
    tokens = torch.randint(0, VOCAB_SIZE, (len(lengths), 100), generator=generator).tolist()
    driver = Driver(runner, [row[: n + len(sizes)] for row, n in zip(tokens, lengths, strict=True)])
    logits = [torch.cat(driver.run(list(enumerate(lengths)))).clone()]
    for size, split in zip(sizes, splits, strict=True):
        chosen = torch.randperm(len(lengths), generator=generator)[:size].tolist()
        logits.append(torch.cat(driver.run([(s, 1) for s in chosen], split)).clone())
    replayer = runner.replayer
    return torch.cat(logits), replayer.num_replayed if replayer else 0, replayer and replayer.refusal


def decode_on_ranks(kind: str, size: int, kernels: str, *arguments: object) -> list[Outcome]:
    """The outcome of `decode` with these arguments on each of `size` ranks of a `kind` of `make_ranks`.

    Raises: what the first rank that failed raised.
    """
    workers = Workers()
    options = {"kernels": make_kernels(kernels, 1)} if size == 1 else {}
    if "symmetric" in kind:
        options["activations"] = (128, 144, torch.float32)
    ranks = make_ranks(kind, size, workers, **options)
    try:
        outcomes = ranks.run("replay_programs.decode", *arguments)
    finally:
        ranks.close()
        workers.close()
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return outcomes
