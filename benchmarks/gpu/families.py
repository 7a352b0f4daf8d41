"""Tiny random models of every family through the engine on the device, beside transformers.

transformers' logits in float32 on this processor are what is expected. In bfloat16 the engine's are beside those of
transformers in bfloat16, too: what rounding alone does to a model.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.device import Device, relative_error
from benchmarks.gpu.findings import Finding, NotRun, asked
from benchmarks.gpu.served import Served
from benchmarks.gpu.stage import StageJob
from interlace.errors import BenchError
from interlace.models.sources import LoadedModel, load_model

NUM_TOKENS, NUM_STEPS = 40, 3  # of the text, beyond every window; of these, tokens that come alone
BOUND = 1e-4  # in float32
TIMES, MORE = 2.0, 1e-2  # in bfloat16: so many times what rounding alone does, and so much more
QUICK_FAMILIES = ("llama", "gemma3", "mixtral")
DRY_FAMILIES = ("qwen3",)


@dataclass(frozen=True)
class FamilyErrors:
    """Relative errors of the logits beside those in float32."""

    float32: float
    bfloat16: float
    rounding: float  # of transformers itself in bfloat16

    @property
    def over_rounding(self) -> float:
        """The part of what is allowed in bfloat16."""
        return self.bfloat16 / (TIMES * self.rounding + MORE)


def run(job: StageJob) -> None:
    if find_spec("transformers") is None:
        raise NotRun("transformers is not installed: pip install transformers")
    models = importlib.import_module("support.tiny_models")  # the tests' own
    found: dict[str, FamilyErrors] = {}
    failed: dict[str, str] = {}
    names = tuple(models.FAMILIES)
    if job.options.is_dry_run or job.options.is_quick:
        names = DRY_FAMILIES if job.options.is_dry_run else QUICK_FAMILIES
    for name in names:
        try:
            found[name] = errors_of(job.device, models, name)
        except Exception as error:
            failed[name] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        job.told.keep(families={each: asdict(errors) for each, errors in found.items()}, failed=failed)
        job.told.show(*findings(found))
    if failed:
        raise BenchError("; ".join(f"{name}: {reason}" for name, reason in failed.items()))


def errors_of(device: Device, models: Any, family: str) -> FamilyErrors:
    """One family in both dtypes."""
    ids = [(7 * i + 3) % models.VOCAB_SIZE for i in range(NUM_TOKENS)]
    model = models.build(family)
    expected = logits_of(model, ids)
    rounding = relative_error(logits_of(model.bfloat16(), ids), expected)
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_model(str(models.make_model(Path(folder), family)))
        exact, rounded = (
            relative_error(engines_logits(device, loaded, dtype, ids), expected)
            for dtype in (torch.float32, torch.bfloat16)
        )
    return FamilyErrors(exact, rounded, rounding)


def engines_logits(device: Device, loaded: LoadedModel, dtype: torch.dtype, ids: list[int]) -> Tensor:
    """The engine's logits after all but the last tokens, and after each of these."""
    served = Served(device, loaded, dtype, num_seqs=1, num_tokens=NUM_TOKENS)
    try:
        return served.logits(ids, NUM_STEPS).cpu()
    finally:
        served.close()


@torch.inference_mode()
def logits_of(model: Any, ids: list[int]) -> Tensor:
    """transformers' logits after all but the last tokens, and after each of these."""
    logits: Tensor = model(torch.tensor([ids]), use_cache=False).logits[0, -NUM_STEPS - 1 :]
    return logits.float()


def findings(found: dict[str, FamilyErrors]) -> Iterator[Finding]:
    """A row for each dtype: the family that is furthest off."""
    if not found:
        return
    what = f"{len(found)} families beside transformers"
    worst = max(found, key=lambda name: found[name].float32)
    error = found[worst].float32
    yield asked(
        f"{what}, float32",
        f"{worst} is off by {error:.1e}, no other by more",
        f"< {BOUND:.0e}",
        error < BOUND,
    )
    worst = max(found, key=lambda name: found[name].over_rounding)
    errors = found[worst]
    got = f"{worst} is off by {errors.bfloat16:.1e}; transformers in bfloat16 by {errors.rounding:.1e}"
    target = f"< {TIMES:g} x + {MORE:g}"
    yield asked(f"{what}, bfloat16", got, target, errors.over_rounding < 1)
