"""Programs for the ranks of a group with symmetric memory. Each takes the rank's communicator first."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import torch
from torch import Tensor

from support.rank_programs import DTYPES, norms_of, reserve_activations
from tokenweave.communicators import Communicator
from tokenweave.kernels import ResidualNorms, make_kernels

Case = tuple[int, int, str]  # num_tokens, hidden_size, dtype
Outcome = tuple[Tensor, Tensor, range]  # the normed rows, the residual, and the rows of it that count
EPS = 1e-5


def inputs(size: int, case: Case, seed: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Returns every rank's partial sum, the residual and the weight: the same on every rank."""
    num_tokens, hidden_size, dtype = case
    generator = torch.Generator().manual_seed(seed)
    shape = (num_tokens, hidden_size)
    parts = [torch.randn(shape, generator=generator).to(DTYPES[dtype]) for _ in range(size)]
    weight = torch.randn(hidden_size, generator=generator).to(DTYPES[dtype])
    return parts, torch.randn(shape, generator=generator), weight


def fused(
    comm: Communicator, cases: list[Case], place: str = "partial", slow_rank: int = -1, kind: str = "before"
) -> list[Outcome]:
    """One call after the other. `place`: where hidden lies; `slow_rank` reads each answer long after it was given."""
    outcomes = []
    for seed, case in enumerate(cases):
        parts, residual, weight = inputs(comm.size, case, seed)
        hidden = _placed(comm, parts[comm.rank], place)
        normed = comm.all_reduce_rms_norm(hidden, residual, norms_of(kind, weight, EPS))
        if comm.rank == slow_rank:
            time.sleep(0.002)
        outcomes.append((normed.clone(), residual, comm.owned_rows(*normed.shape, normed.dtype)))
    return outcomes


def _placed(comm: Communicator, rows: Tensor, place: str) -> Tensor:
    if place == "plain":
        return rows.clone()
    if place == "strided":
        return rows.t().contiguous().t()
    return comm.new_partial(*rows.shape, rows.dtype).copy_(rows)


def two_parts(comm: Communicator, case: Case, rounds: int) -> list[bool]:
    """Two parts take turns, as in a woven plan: each still holds its last answer while the other's is made."""
    last: dict[int, tuple[Tensor, Tensor]] = {}
    intact = []
    for turn in range(2 * rounds):
        parts, residual, weight = inputs(comm.size, case, turn)
        normed = comm.all_reduce_rms_norm(
            _placed(comm, parts[comm.rank], "partial"), residual, ResidualNorms(weight, EPS)
        )
        if (before := last.get(1 - turn % 2)) is not None:
            intact.append(torch.equal(*before))
        last[turn % 2] = (normed, normed.clone())
    return intact


def takes_symmetric_memory(comm: Communicator, num_tokens: int, hidden_size: int, dtype: str) -> bool:
    """Whether a partial sum of this shape would be written where the other ranks see it."""
    memory = comm._symmetric  # type: ignore[attr-defined]
    return memory.offset_of(comm.new_partial(num_tokens, hidden_size, DTYPES[dtype])) is not None


def answers_lie_in_one_memory(comm: Communicator, num_tokens: int) -> bool:
    """Whether rank 0 sees what the last rank writes to the answer it was given."""
    hidden = comm.new_partial(num_tokens, 64, torch.float32).zero_()
    normed = comm.all_reduce_rms_norm(hidden, torch.zeros(num_tokens, 64), ResidualNorms(torch.ones(64), EPS))
    comm.barrier()
    if comm.rank == comm.size - 1:
        normed.fill_(7.0)
    comm.barrier()
    return bool((normed == 7.0).all())


def phased(comm: Communicator, case: Case) -> tuple[Outcome, int]:
    """The operation in phases, and how many exchanges it has."""
    parts, residual, weight = inputs(comm.size, case, 0)
    phases = comm.reduce_norm_phases(
        _placed(comm, parts[comm.rank], "partial"), residual, ResidualNorms(weight, EPS)
    )
    exchanges = 0
    while True:
        try:
            next(phases)
            exchanges += 1
        except StopIteration as end:
            normed: Tensor = end.value
            owned = comm.owned_rows(*normed.shape, normed.dtype)
            return (normed.clone(), residual, owned), exchanges


def aborted_mid_way(comm: Communicator, odd_rank: int, num_tokens: int) -> str:
    """All but `odd_rank` wait for it in the operation; what they are told."""
    if comm.rank == odd_rank:
        time.sleep(0.1)
        comm.abort("no memory")
        return "nothing"
    return _told_by(lambda: fused(comm, [(num_tokens, 64, "float32")]))


def _told_by(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def killed_mid_way(comm: Communicator, odd_rank: int, num_tokens: int) -> str:
    """`odd_rank` ends between the operation's two synchronisations; what the others are told."""
    parts, residual, weight = inputs(comm.size, (num_tokens, 64, "float32"), 0)
    comm.barrier()
    phases = comm.reduce_norm_phases(
        _placed(comm, parts[comm.rank], "partial"), residual, ResidualNorms(weight, EPS)
    )
    next(phases)
    if comm.rank == odd_rank:
        os.kill(os.getpid(), signal.SIGKILL)
    return _told_by(lambda: list(phases))


def mismatched(comm: Communicator, odd_rank: int) -> str:
    """Returns the error that a rank gets when `odd_rank` brings more tokens than the others."""
    return _told_by(lambda: fused(comm, [(8 if comm.rank == odd_rank else 7, 64, "float32")]))


def out_of_step(comm: Communicator, odd_rank: int) -> str:
    """Returns the error that a rank gets when `odd_rank` has taken one buffer more than the others."""
    if comm.rank == odd_rank:
        comm.new_partial(7, 64, torch.float32)
    return _told_by(lambda: fused(comm, [(7, 64, "float32")]))


def refused(comm: Communicator) -> list[str]:
    """Returns the errors of impossible calls. None of these calls reaches another rank."""
    rows, residual, weight = torch.zeros(5, 8), torch.zeros(5, 8), torch.zeros(8)
    calls: list[Callable[[], object]] = [
        lambda: comm.all_reduce_rms_norm(rows, residual.bfloat16(), ResidualNorms(weight, EPS)),
        lambda: comm.all_reduce_rms_norm(rows, residual[:4], ResidualNorms(weight, EPS)),
        lambda: comm.all_reduce_rms_norm(rows, torch.zeros(8, 5).t(), ResidualNorms(weight, EPS)),
        lambda: comm.all_reduce_rms_norm(rows, residual, ResidualNorms(torch.zeros(7), EPS)),
        lambda: comm.all_reduce_rms_norm(rows, residual, ResidualNorms(weight.bfloat16(), EPS)),
        lambda: comm.all_reduce_rms_norm(rows, residual, ResidualNorms(weight, EPS, torch.zeros(7))),
        lambda: reserve_activations(comm),
        lambda: comm.reserve_activations(0, 64, torch.float32),
        lambda: comm.new_partial(-1, 64, torch.float32),
    ]
    return [_told_by(call) for call in calls]


def without_native_kernels(comm: Communicator, case: Case) -> list[Outcome]:
    """The same operation on the reference kernels, which cannot use symmetric memory."""
    native, comm.kernels = comm.kernels, make_kernels("reference")
    try:
        return fused(comm, [case])
    finally:
        comm.kernels = native
