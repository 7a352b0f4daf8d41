"""Host costs: what an executor adds, on the host, to what the steps of a plan take by themselves.

Lanes of a processor are threads: a step is handed from one to the other, and whoever waits for a link has to wake up.
Lanes of a GPU are streams: nobody wakes up, but one thread issues every step, and a step cannot begin before that.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenweave.errors import TuneError


@dataclass(frozen=True, slots=True)
class HostCosts:
    """Seconds; data of a wave table."""

    call_s: float = 0.0  # of calling one stage; stages that were measured have it in their times
    switch_s: float = 0.0  # what handing a step from lane to lane adds to each transfer of a woven plan
    wake_s: float = 0.0  # what waking up adds to a wait for a link
    issue_s: float = 0.0  # the host's time for each step, where one thread issues the steps of all lanes

    def __post_init__(self) -> None:
        if not all(0 <= value < float("inf") for value in self.values):
            raise TuneError(f"got host costs of {self.values}; expected finite numbers of seconds from 0 on")

    @property
    def values(self) -> tuple[float, float, float, float]:
        return self.call_s, self.switch_s, self.wake_s, self.issue_s


# Assumed where nothing was measured. Lanes: ours on Zen 4. Streams: measured on no GPU; the gaps between the five or so
# kernels of a stage, an event between two streams, and about eight launches by torch and Triton for each step.
LANES = HostCosts(call_s=15e-6, switch_s=30e-6, wake_s=60e-6)
STREAMS = HostCosts(call_s=8e-6, switch_s=4e-6, issue_s=60e-6)
