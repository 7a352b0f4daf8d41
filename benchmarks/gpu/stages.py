"""The stages of `make gpu`, in the order in which they run, and what each is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.processes import ROOT
from interlace.errors import BenchError


@dataclass(frozen=True)
class Stage:
    """One stage. Its module has `run(job)`; what it takes longer than its bound is cut off."""

    name: str
    what: str
    bound_s: float
    quick_bound_s: float  # 0: it is left out
    needs_device: bool = True
    is_counted: bool = True  # against the time that the whole script may take

    @property
    def module(self) -> str:
        return f"benchmarks.gpu.{self.name}"

    def bound(self, is_quick: bool) -> float:
        """The most seconds that it may take."""
        return self.quick_bound_s if is_quick else self.bound_s


STAGES = (
    Stage("machine", "the GPU and its floors", 45, 15),
    Stage("build", "the native libraries", 300, 300, needs_device=False, is_counted=False),
    Stage("tests", "the tests that need a GPU", 120, 15),
    Stage("families", "every family beside transformers", 45, 15),
    Stage("kernels", "the kernels of a layer", 45, 15),
    Stage("engine", "the engine on Llama-3-8B's shapes", 60, 20),
    Stage("fused", "the fused operation, ranks on one GPU", 75, 15),
    Stage("overlap", "products beside communication", 45, 15),
    Stage("streams", "woven plans on streams and in graphs", 45, 15),
    Stage("tune", "the wave table of a GPU", 45, 0),
    Stage("woven", "woven passes of the engine", 45, 0),
    Stage("peers", "the engine beside a plain loop and transformers", 150, 0),
)
BUDGET_S = 240.0  # for all stages that are counted
QUICK_BUDGET_S = 60.0


@dataclass(frozen=True)
class StageOptions:
    """Options that every stage is told."""

    is_quick: bool = False  # few shapes and rounds
    is_dry_run: bool = False  # no GPU: fakes, and shapes so small that a time means nothing
    artefacts: str = "."  # the directory for files that go with the record
    name: str = "gpu"  # what the names of those begin with
    root: str = str(ROOT)  # of the checkout
    bound_s: float = 60.0

    def artefact(self, name: str) -> Path:
        """The place of a file that goes with the record."""
        return Path(self.artefacts) / f"{self.name}-{name}"


def stages_named(names: Sequence[str] | None) -> tuple[Stage, ...]:
    """The stages of these names, in the order in which they run; all where none are given.

    Raises:
        BenchError: there is no stage of one of the names.
    """
    if names is None:
        return STAGES
    known = [stage.name for stage in STAGES]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise BenchError(f"got the stages {', '.join(names) or 'none'}; expected some of {', '.join(known)}")
    return tuple(stage for stage in STAGES if stage.name in names)
