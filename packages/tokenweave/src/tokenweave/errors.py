"""Errors of tokenweave.

TokenweaveError
├── PlanError               a plan is malformed, or an executor was given a step it has no handler for
├── NativeError             the native library is missing, too old, or refused a call
├── KernelError             arguments a kernel cannot take
├── GraphError              work that cannot be captured in a graph
├── TuneError               a wave table cannot be measured or read
├── TraceError              a trace cannot be recorded, written or read
├── CommunicatorError       arguments or a set-up that a communicator cannot take
│   └── CollectiveMismatch  the ranks called different collectives at the same step
├── RankError               a rank of the group died or aborted the job; `.rank` names it
└── CommunicatorTimeout     a collective did not complete in time
"""


class TokenweaveError(Exception):
    """Base of every error that tokenweave raises on purpose."""


class PlanError(TokenweaveError):
    """A plan is malformed, or an executor was given a step it has no handler for."""


class NativeError(TokenweaveError):
    """The native library is missing, too old, or refused a call."""


class KernelError(TokenweaveError):
    """Arguments a kernel cannot take."""


class GraphError(TokenweaveError):
    """Work that cannot be captured in a graph."""


class TuneError(TokenweaveError):
    """A wave table cannot be measured or read."""


class TraceError(TokenweaveError):
    """A trace cannot be recorded, written or read."""


class CommunicatorError(TokenweaveError):
    """Arguments or a set-up that a communicator cannot take."""


class CollectiveMismatch(CommunicatorError):
    """The ranks called different collectives at the same step; the group is aborted."""


class RankError(TokenweaveError):
    """A rank of the group died or aborted the job."""

    def __init__(self, message: str, rank: int | None = None) -> None:
        super().__init__(message)
        self.rank = rank


class CommunicatorTimeout(TokenweaveError):
    """A collective did not complete in time."""
