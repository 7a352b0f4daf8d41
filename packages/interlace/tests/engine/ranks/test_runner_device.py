"""A rank works where its kernels compute."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch

from interlace.engine.config import EngineConfig
from interlace.engine.ranks.runner import Runner
from interlace.models.batch import ForwardBatch
from interlace.models.sources import load_model
from support.tiny_models import VOCAB_SIZE, make_model
from tokenweave.communicators import NullCommunicator
from tokenweave.kernels import ReferenceKernels

META = torch.device("meta")


@pytest.mark.parametrize("executor", ["lanes", "sequential"])
def test_a_rank_runs_batches_on_the_device_of_its_kernels(tmp_path: Path, executor: str) -> None:
    """Also what runs beside its compute lane, which has kernels of its own."""
    directory = make_model(tmp_path)
    config = EngineConfig(str(directory), communicator="null", num_kv_blocks=8, executor=executor)
    communicator = NullCommunicator(kernels=ReferenceKernels(device=META))
    with closing(Runner(config, load_model(str(directory)), communicator)) as runner:
        assert {runner.cache.tensor.device, runner.communicator.kernels.device} == {META}
        for num_tokens in (20, 1, 1, 1):  # one token: what would be replayed where kernels are native
            logits = runner.execute(ForwardBatch.prefill(num_tokens, VOCAB_SIZE))
            assert (logits.device, logits.shape) == (META, (1, VOCAB_SIZE))
