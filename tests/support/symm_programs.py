"""Programs for the ranks of a `symm_mem` group. Each takes the rank's communicator first."""

from __future__ import annotations

import threading
import time
from typing import Any

import torch
from torch import Tensor

from support.rank_programs import DTYPES, norms_of
from tokenweave.communicators.activation_ring import BuffersTaken
from tokenweave.errors import CommunicatorError
from tokenweave.kernels import ResidualNorms

Case = tuple[int, int, str, str]  # num_tokens, hidden_size, dtype, where hidden lies


def inputs(
    size: int, num_tokens: int, hidden_size: int, dtype: str, seed: int
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Returns every rank's partial sum, the residual and the weight: the same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_tokens, hidden_size)
    parts = [torch.randn(shape, generator=generator).to(DTYPES[dtype]) for _ in range(size)]
    weight = torch.randn(hidden_size, generator=generator).to(DTYPES[dtype])
    return parts, torch.randn(shape, generator=generator), weight


def fused(
    comm: Any, cases: list[Case], kind: str = "before", ctas: list[int] | None = None
) -> list[tuple[Tensor, Tensor, range]]:
    """One call after the other: the normed rows, the residual, and the rows of it that count.

    `ctas`: how many CTAs each call takes.
    """
    outcomes: list[tuple[Tensor, Tensor, range]] = []
    for seed, (num_tokens, hidden_size, dtype, place) in enumerate(cases):
        parts, residual, weight = inputs(comm.size, num_tokens, hidden_size, dtype, seed)
        hidden = placed(comm, parts[comm.rank].to(comm.device), place)
        residual, weight = residual.to(comm.device), weight.to(comm.device)
        if ctas is not None:
            comm.use_ctas(ctas[seed])
        normed = comm.all_reduce_rms_norm(hidden, residual, norms_of(kind, weight, 1e-5))
        assert normed is hidden
        outcomes.append((normed.clone(), residual, comm.owned_rows(*normed.shape, normed.dtype)))
    comm.synchronize()
    return [(normed.cpu(), residual.cpu(), owned) for normed, residual, owned in outcomes]


def fused_by_shards(comm: Any, cases: list[Case]) -> list[tuple[Tensor, Tensor, range]]:
    """As `fused`, with the rows of the residual that the rank owns, and no others."""
    outcomes: list[tuple[Tensor, Tensor, range]] = []
    for seed, (num_tokens, hidden_size, dtype, place) in enumerate(cases):
        parts, residual, weight = inputs(comm.size, num_tokens, hidden_size, dtype, seed)
        hidden = placed(comm, parts[comm.rank].to(comm.device), place)
        owned = comm.owned_rows(*hidden.shape, hidden.dtype)
        own = residual[owned.start : owned.stop].clone().to(comm.device)
        comm.all_reduce_rms_norm(hidden, own, ResidualNorms(weight.to(comm.device), 1e-5))
        outcomes.append((hidden.clone(), own, owned))
    comm.synchronize()
    return [(normed.cpu(), own.cpu(), owned) for normed, own, owned in outcomes]


def called_with_ctas(comm: Any, num_ctas: int, num_tokens: int) -> str:
    """Returns what a call with so many CTAs raises."""
    comm.use_ctas(num_ctas)
    return time_to_raise(comm, num_tokens)[1]


def refused_ctas(comm: Any, num_ctas: int) -> str:
    try:
        comm.use_ctas(num_ctas)
    except CommunicatorError as error:
        return str(error)
    return "nothing"


def partials_of_passes(comm: Any, taken_by_passes: list[int]) -> list[tuple[list[int], tuple[int, int]]]:
    """Where each pass has its partial sums, from the very first on, and the phase that it begins with."""
    comm.reserve_activations(9, 64, torch.float32)
    passes: list[tuple[list[int], tuple[int, int]]] = []
    for num_taken in taken_by_passes:
        comm.begin_pass()
        phase = tuple(comm.buffers_taken.phase)
        places = [comm.new_partial(9, 64, torch.float32).data_ptr() for _ in range(num_taken)]
        passes.append((places, phase))
    origin = passes[0][0][0]
    return [([place - origin for place in places], phase) for places, phase in passes]


def partials_after_a_replay(comm: Any, replayed: int) -> bool:
    """Whether a pass goes on behind a replayed part of it as if it had taken these buffers itself."""
    comm.reserve_activations(9, 64, torch.float32)
    nexts = []
    for is_replayed in (False, True):
        comm.begin_pass()
        if is_replayed:
            comm.take_buffers(BuffersTaken(replayed, 0))
        else:
            for _ in range(replayed):
                comm.new_partial(9, 64, torch.float32)
        nexts.append(comm.new_partial(9, 64, torch.float32).data_ptr())
    return nexts[0] == nexts[1]


def woven_on_partials(comm: Any, num_tokens: int) -> tuple[bool, list[Tensor], list[Tensor], int]:
    """Reductions of two parts in turn on partial sums of the ring.

    Returns whether anything was staged, the normed rows of each right after their reduction and after the second one
    after it, and how many bytes of symmetric memory the calls allocated.
    """
    comm.reserve_activations(num_tokens, 64, torch.float32)
    staging, comm._staging = comm._staging, None
    used_bytes = comm._memory._used_bytes
    normed: list[Tensor] = []
    early: list[Tensor] = []
    late: list[Tensor] = []
    residuals = [torch.zeros(num_tokens, 64) for _ in range(2)]
    comm.begin_pass()
    for at in range(8):
        parts, _, weight = inputs(comm.size, num_tokens, 64, "float32", at)
        partial = comm.new_partial(num_tokens, 64, torch.float32).copy_(parts[comm.rank])
        normed.append(comm.all_reduce_rms_norm(partial, residuals[at % 2], ResidualNorms(weight, 1e-5)))
        early.append(normed[-1].clone())
        if at >= 4:
            late.append(normed[at - 4].clone())
    is_staged, comm._staging = comm._staging is not None, staging
    return is_staged, early[:4], late, comm._memory._used_bytes - used_bytes


def partial_that_does_not_fit(comm: Any) -> tuple[torch.device, int, BuffersTaken]:
    """The device and rows of a partial sum wider than the ring has room for, and what was taken of the ring for it."""
    comm.reserve_activations(9, 64, torch.float32)
    before = comm.buffers_taken
    partial = comm.new_partial(10, 64, torch.float32)
    return partial.device, len(partial), comm.buffers_taken.since(before)


def placed(comm: Any, rows: Tensor, place: str) -> Tensor:
    """`rows` in a tensor of their own, in symmetric memory, or in the middle of a symmetric tensor."""
    if place == "plain":
        return rows.clone()
    if place == "strided":
        return rows.t().contiguous().t()
    skipped = 2 if place == "rows" else 0
    whole = comm.symmetric_empty((rows.shape[0] + skipped, rows.shape[1]), rows.dtype)
    whole[skipped:] = rows
    return whole[skipped:]


def pads(comm: Any) -> list[int]:
    """This rank's counters, once every rank has left its last call."""
    comm.barrier()
    counters: list[int] = comm.pads.tolist()
    return counters


def prepare(comm: Any) -> None:
    """So that calls of up to 9 rows allocate nothing."""
    comm.prepare(64, torch.float32, 9)


def prepared_for(comm: Any, hidden_size: int, max_tokens: int) -> list[tuple[int, tuple[str, ...]]]:
    """Rows and weights of the calls by which a rank prepares for a model with two combinations of norms."""
    one, other = torch.ones(hidden_size), torch.ones(hidden_size)
    examples = (ResidualNorms(one, 1e-5), ResidualNorms(other, 1e-5), ResidualNorms(one, 1e-5, other))
    called: list[tuple[int, tuple[str, ...]]] = []
    reduce = comm.all_reduce_rms_norm

    def noted(hidden: torch.Tensor, residual: torch.Tensor, norms: ResidualNorms) -> torch.Tensor:
        called.append((len(hidden), tuple(norms.weights)))
        found: torch.Tensor = reduce(hidden, residual, norms)
        return found

    comm.all_reduce_rms_norm = noted
    try:
        comm.prepare(hidden_size, torch.float32, max_tokens, *examples)
    finally:
        del comm.all_reduce_rms_norm
    return called


def hurry(comm: Any, timeout_s: float) -> None:
    """From now on calls wait for `timeout_s` at most."""
    comm.hurry(timeout_s)


def fused_once(comm: Any, num_tokens: int) -> None:
    fused(comm, [(num_tokens, 64, "float32", "plain")])


def time_to_raise(comm: Any, num_tokens: int) -> tuple[float, str, str]:
    """How long a call took to raise, what it raised, and what the next one raises."""
    started_s = time.monotonic()
    raised = []
    for _ in range(2):
        try:
            fused(comm, [(num_tokens, 64, "float32", "plain")])
            raised.append("nothing")
        except Exception as error:
            raised.append(f"{type(error).__name__}: {error}")
        if len(raised) == 1:
            took_s = time.monotonic() - started_s
    return took_s, raised[0], raised[1]


def aborted_while_it_waits(comm: Any, num_tokens: int, after_s: float) -> tuple[float, str, str]:
    timer = threading.Timer(after_s, comm.abort, ["enough"])
    timer.start()
    outcome = time_to_raise(comm, num_tokens)
    timer.join()
    return outcome


def refused(comm: Any) -> list[str]:
    """Returns the errors of impossible calls. None of these calls reaches a peer."""
    rows, residual, weight = torch.zeros(5, 8), torch.zeros(5, 8), torch.zeros(8)
    wrong = [
        (rows.int(), residual, weight),
        (rows.view(40), residual, weight),
        (rows, residual.bfloat16(), weight),
        (rows, residual[:4], weight),
        (rows, residual, torch.zeros(7)),
        (rows, torch.zeros(41)[1:].view(5, 8), weight),
        (rows, residual, torch.zeros(9)[1:]),
    ]
    messages = []
    for hidden, beside, scale in wrong:
        try:
            comm.all_reduce_rms_norm(hidden, beside, ResidualNorms(scale, 1e-5))
        except Exception as error:
            messages.append(f"{type(error).__name__}: {error}")
    return messages


def one_device(
    comm: Any, num_tokens: int, hidden_size: int, dtype: str
) -> list[tuple[Tensor, Tensor, list[int]]]:
    """Returns the results of `OneDevice` for one rank, on this process's interpreter: by peers, and in one shot."""
    from tokenweave.kernels.cuda.one_device import OneDevice

    outcomes = []
    for path in ("by_peers", "in_one_shot"):
        ranks = OneDevice(
            1, num_tokens, hidden_size, DTYPES[dtype], device=str(comm.device), num_ctas=2, rows_per_cta=2
        )
        (part,), residual, weight = inputs(1, num_tokens, hidden_size, dtype, 0)
        ranks.hidden[0].copy_(part)
        ranks.residual[0].copy_(residual)
        ranks.weight.copy_(weight)
        getattr(ranks, path)(0, num_tokens)
        outcomes.append((ranks.hidden[0], ranks.residual[0], ranks.pads[0].flatten().tolist()))
    return outcomes


def fused_by_a_slow_reader(
    comm: Any, slow_rank: int, cases: list[Case]
) -> list[tuple[Tensor, Tensor, range]]:
    """As `fused`, with one rank that sleeps between the barrier and reading what it was sent."""
    from tokenweave.kernels.cuda import rows

    read = rows.load_and_sum

    def read_late(*arguments: Any) -> Any:
        time.sleep(0.05)
        return read(*arguments)

    rows.load_and_sum = read_late if comm.rank == slow_rank else read
    try:
        return fused(comm, cases)
    finally:
        rows.load_and_sum = read


def launch_after_a_failure(comm: Any, num_tokens: int) -> list[str]:
    """Returns the errors of calls that launch their kernels, because the host has forgotten that the rank failed."""
    raised = []
    for _ in range(3):
        raised.append(time_to_raise(comm, num_tokens)[1].partition(":")[0])
        comm._waits.failure = None
        comm._mailbox.zero_()
    return raised


class Happened:
    """An event of a device that is done with what was queued."""

    def query(self) -> bool:
        return True


def launch_behind_a_failure(comm: Any, num_tokens: int) -> tuple[list[int], str]:
    """The mailbox after each of some calls whose host does not look, and what a wait for the device then raises."""
    look, said = comm._raise_if_failed, []
    comm._raise_if_failed = lambda: None
    for _ in range(3):
        hidden, residual = torch.zeros(num_tokens, 64), torch.zeros(num_tokens, 64)
        comm.all_reduce_rms_norm(hidden, residual, ResidualNorms(torch.ones(64), 1e-5))
        said.append(int(comm._letters[0]))
    comm._raise_if_failed = look
    try:
        comm.wait_for(Happened())
    except Exception as error:
        return said, f"{type(error).__name__}: {error}"
    return said, "nothing"


def signals(comm: Any) -> list[int]:
    """This rank's counters, as they are."""
    counters: list[int] = comm.pads.tolist()
    return counters
