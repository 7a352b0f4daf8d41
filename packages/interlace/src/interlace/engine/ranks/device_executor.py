"""The executor of a rank on a GPU: lanes are streams of the device, and the host issues work without waiting for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenweave.streams import CudaStreams, HostStreams, StreamExecutor

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from interlace.engine.weaving.gpu_prices import PassCtas
    from tokenweave.communicators import Communicator
    from tokenweave.execute import Handler, Observer
    from tokenweave.plan import Operation, Plan
    from tokenweave.stream_times import Alignment


class DeviceExecutor:
    """Issues plans to one device: those that can overlap to a stream for each lane, others to the caller's alone.

    Thread safety: one `run` at a time.
    """

    def __init__(
        self, communicator: Communicator, uses_lanes: bool = True, ctas: PassCtas | None = None
    ) -> None:
        """For the device of the communicator's kernels: on the CPU, where they are interpreted, streams are the caller.

        Without `uses_lanes` all plans are issued to the caller's stream, in list order: the oracle. `ctas`: of the
        plans' reductions, to which the products of woven plans leave as many SMs.
        """
        device = communicator.kernels.device
        self._streams: StreamExecutor[Any, Any] = StreamExecutor(
            HostStreams()
            if device.type == "cpu"
            else CudaStreams(device, 0 if ctas is None else ctas.left_sms, communicator.wait_for)
        )
        self._uses_lanes, self._ctas = uses_lanes, ctas

    def run(self, plan: Plan, handlers: Mapping[Operation, Handler], observe: Observer | None = None) -> None:
        """Issues every step of `plan`; what is queued on the caller's stream afterwards sees all of it done.

        `observe` is told when the steps ran: by `collect`.

        Raises:
            PlanError: the plan has a step whose operation has no handler; nothing has been issued then.
        """
        if self._ctas is not None:
            self._ctas.take(is_woven=plan.overlaps)
        if self._uses_lanes and plan.overlaps:
            self._streams.run(plan, handlers, observe)
        else:
            self._streams.run_in_order(plan, handlers, observe)

    def collect(self) -> Alignment:
        """Waits until the device has done what was observed, and tells the observers.

        Raises:
            RankError, CommunicatorTimeout: it does not get there, for a rank is gone.
        """
        return self._streams.times.collect()
