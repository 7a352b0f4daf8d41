"""One stage in a process of its own: `python -m benchmarks.gpu.stage NAME FILE OPTIONS`.

A stage asserts that what it measures is right before it times it. It tells what it has found as soon as it has.
"""

from __future__ import annotations

import importlib
import json
import math
import resource
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.gpu.findings import NoDevice, NotRun, StageFile, State
from benchmarks.gpu.stages import StageOptions, stages_named

if TYPE_CHECKING:
    from benchmarks.gpu.device import Device

GRACE_S = 20.0  # in which whoever started it ends it; then it ends by itself


@dataclass(frozen=True)
class StageJob:
    """The argument of a stage's `run`."""

    told: StageFile
    options: StageOptions
    began_s: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        """The time until the stage is ended."""
        return self.options.bound_s - (time.monotonic() - self.began_s)

    @cached_property
    def device(self) -> Device:
        """The GPU, or what stands in for it in a dry run.

        Raises:
            NoDevice: there is none.
        """
        from benchmarks.gpu.device import open_device

        return open_device(self.options.is_dry_run)


def main(arguments: list[str]) -> int:
    """Runs a stage. Returns 0 where it is done."""
    name, path, options = arguments
    job = StageJob(StageFile(Path(path)), StageOptions(**json.loads(options)))
    signal.alarm(math.ceil(job.options.bound_s + GRACE_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        (stage,) = stages_named([name])
        if stage.needs_device:
            job.told.keep(device=job.device.name)
        importlib.import_module(stage.module).run(job)
    except NoDevice as error:
        job.told.end(State.NO_DEVICE, str(error))
    except NotRun as error:
        job.told.end(State.NOT_RUN, str(error))
    except Exception as error:
        traceback.print_exc()
        words = " ".join(str(error).split())
        job.told.end(State.FAILED, f"{type(error).__name__}: {words}"[:400])
    else:
        job.told.end(State.DONE)
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
