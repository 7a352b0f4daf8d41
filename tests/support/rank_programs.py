"""Programs for the ranks of a test. Each takes the rank's communicator first."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from support.patience import PATIENCE_S
from tokenweave.communicators import Communicator
from tokenweave.errors import CommunicatorError
from tokenweave.kernels import ResidualNorms
from tokenweave.lanes import LaneExecutor
from tokenweave.plan import Op, Plan, Step

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
}

ACTIVATIONS = (128, 4096, torch.float32)  # the largest that symmetric memory has room for


def reserve_activations(comm: Communicator, activations: tuple[int, int, torch.dtype] = ACTIVATIONS) -> None:
    comm.reserve_activations(*activations)


def data_of(rank: int, shape: tuple[int, ...], dtype: str, seed: int = 0) -> Tensor:
    """Returns the tensor of `rank`: its values are of very different sizes, so that the order of a sum shows."""
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    if not DTYPES[dtype].is_floating_point:
        return torch.randint(0, 120, shape, generator=generator).to(DTYPES[dtype])
    scale = 10.0 ** torch.randint(-2, 3, shape, generator=generator)
    return (torch.randn(shape, generator=generator) * scale).to(DTYPES[dtype])


def expected_sum(size: int, shape: tuple[int, ...], dtype: str, seed: int = 0) -> Tensor:
    """The sum in rank order, in float32 for floats, by NumPy."""
    parts = [data_of(rank, shape, dtype, seed) for rank in range(size)]
    wide = [(part.float() if part.is_floating_point() else part).numpy() for part in parts]
    total = wide[0].copy()
    for part in wide[1:]:
        total += part
    return torch.from_numpy(total).to(DTYPES[dtype])


def raise_within_with(comm: Communicator) -> None:
    """Raises an error while the communicator is open, as a rank whose code has a bug does."""
    try:
        with comm:
            raise ValueError("a bug")
    except ValueError:
        pass


def fail_in_a_lane(comm: Communicator) -> str:
    """A step of the compute lane raises while the transfer lane waits for the other ranks."""

    def fail(step: Step) -> None:
        begun.wait(PATIENCE_S)
        raise ValueError("out of memory, say")

    def reduce(step: Step) -> None:
        begun.set()
        try:
            comm.barrier()
        finally:
            ended.set()

    begun, ended = threading.Event(), threading.Event()
    plan = Plan(1, (Step(Op.REDUCE_NORM, norm=0), Step(Op.MLP, layer=0)))
    with LaneExecutor(on_failure=lambda failure: comm.abort(repr(failure))) as executor:
        try:
            executor.run(plan, {Op.REDUCE_NORM: reduce, Op.MLP: fail})
        except ValueError as error:
            return f"{error}; the transfer has ended: {ended.is_set()}"
    return "no error"


def die_leaving_a_child(comm: Communicator) -> None:
    """The rank is killed; a child that it forked, and that holds whatever a fork inherits, outlives the group."""
    channel = int(
        sys.argv[1]
    )  # of rank_worker.py; whoever started the rank closes the other end after the test
    if os.fork() == 0:
        while os.read(channel, 1):
            pass
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


def call_in_a_forked_child(comm: Communicator) -> str:
    """Returns the error of a forked child that calls its parent's communicator and closes it. The parent's works on."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            comm.barrier()
        except Exception as error:
            os.write(writer, str(error).encode())
        comm.close()
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        message = told.read()
    os.wait()
    comm.barrier()
    return message


def all_reduce(comm: Communicator, shape: tuple[int, ...], dtype: str, seed: int = 0) -> Tensor:
    tensor = data_of(comm.rank, shape, dtype, seed)
    comm.all_reduce(tensor)
    return tensor


def all_reduce_slice(comm: Communicator, shape: tuple[int, ...], dtype: str, first: int, last: int) -> Tensor:
    """The sum of rows `first` to `last` alone of what `all_reduce` sums whole."""
    tensor = data_of(comm.rank, shape, dtype)[first:last].clone()
    comm.all_reduce(tensor)
    return tensor


def all_reduce_transposed(comm: Communicator, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A view that is not contiguous, and the whole that it is a view of."""
    whole = data_of(comm.rank, shape, "float32")
    comm.all_reduce(whole.t()[1:])
    return whole.t()[1:].contiguous(), whole


def all_gather(comm: Communicator, shape: tuple[int, ...], dtype: str) -> Tensor:
    return comm.all_gather(data_of(comm.rank, shape, dtype))


def all_gather_strided(comm: Communicator) -> Tensor:
    return comm.all_gather(data_of(comm.rank, (6, 8), "float32")[::2, 1::3])


def gather_columns(comm: Communicator, rows: int, widths: list[int], dtype: str, root: int) -> Tensor | None:
    return comm.gather_columns(
        data_of(comm.rank, (rows, widths[comm.rank]), dtype), widths[: comm.size], root
    )


def broadcast(comm: Communicator, shape: tuple[int, ...], dtype: str, root: int) -> Tensor:
    tensor = data_of(comm.rank, shape, dtype)
    comm.broadcast(tensor, root)
    return tensor


def broadcast_strided(comm: Communicator, root: int) -> Tensor:
    whole = data_of(comm.rank, (6, 8), "float32")
    comm.broadcast(whole[:, ::2], root)
    return whole


def broadcast_bytes(comm: Communicator, data: bytes, root: int, idle: bool) -> bytes:
    return comm.broadcast_bytes(data if comm.rank == root else None, root, idle)


def broadcast_from_a_late_root(comm: Communicator, delay_s: float) -> tuple[bytes, float, float]:
    """Returns the bytes that were received, the time that it took, and the processor time."""
    comm.barrier()
    if comm.rank == 0:
        time.sleep(delay_s)
    before_s, busy_before_s = time.monotonic(), time.thread_time()
    data = comm.broadcast_bytes(b"late" if comm.rank == 0 else None, idle=True)
    return data, time.monotonic() - before_s, time.thread_time() - busy_before_s


def barrier_times(comm: Communicator) -> tuple[float, float]:
    """When this rank came to the barrier and when it left; the clock is one for all processes."""
    time.sleep(0.02 * comm.rank)
    came_s = time.monotonic()
    comm.barrier()
    return came_s, time.monotonic()


def norms_of(kind: str, weight: Tensor, eps: float) -> ResidualNorms:
    """Returns norms "before" the next sublayer, "after" this one, at "both" places, or at "neither"."""
    return ResidualNorms(
        weight if kind in ("before", "both") else None,
        eps,
        weight.flip(0) if kind in ("after", "both") else None,
    )


def all_reduce_rms_norm(
    comm: Communicator, num_tokens: int, dtype: str, kind: str = "before"
) -> tuple[Tensor, Tensor, range]:
    hidden = data_of(comm.rank, (num_tokens, 64), dtype)
    residual = data_of(100, (num_tokens, 64), "float32")
    weight = data_of(200, (64,), dtype)
    normed = comm.all_reduce_rms_norm(hidden, residual, norms_of(kind, weight, 1e-5))
    return normed, residual, comm.owned_rows(*hidden.shape, hidden.dtype)


def selected_residual(
    comm: Communicator, num_tokens: int, rows: list[int], dtype: str
) -> tuple[Tensor, Tensor]:
    """The residual's `rows` after a reduction, and what reducing those alone then gives; others are spoiled first."""
    hidden = data_of(comm.rank, (num_tokens, 64), dtype)
    residual = data_of(100, (num_tokens, 64), "float32")
    weight = data_of(200, (64,), dtype)
    comm.all_reduce_rms_norm(hidden, residual, ResidualNorms(weight, 1e-5))
    own = comm.owned_rows(num_tokens, 64, DTYPES[dtype])
    residual[: own.start] = residual[own.stop :] = float("nan")
    kept = comm.select_residual(residual, torch.tensor(rows, dtype=torch.int32), num_tokens, DTYPES[dtype])
    selected = kept.clone()
    few = data_of(comm.rank, (num_tokens, 64), dtype, seed=1)[rows]
    return selected, comm.all_reduce_rms_norm(few, kept, ResidualNorms(weight, 1e-5)).clone()


def reduced_on_its_device(comm: Communicator, num_tokens: int) -> tuple[str, Tensor, Tensor]:
    """The communicator's name, a sum, and normed rows of ones, computed where the rank's kernels compute."""
    device, shape = comm.kernels.device, (num_tokens, 64)
    total = data_of(comm.rank, shape, "float32").to(device)
    comm.all_reduce(total)
    comm.reserve_activations(num_tokens, 64, torch.float32)
    partial = comm.new_partial(num_tokens, 64, torch.float32).fill_(1.0)
    residual = comm.new_residual(num_tokens, 64, torch.float32)
    norms = ResidualNorms(torch.ones(64, device=device), 1e-5)
    normed = comm.all_reduce_rms_norm(partial, residual, norms)
    if device.type == "cuda":
        comm.wait_for(torch.cuda.current_stream(device).record_event())
    return comm.name, total.cpu(), normed.cpu()


def residual_of_its_own(
    comm: Communicator, num_tokens: int, rows: list[int], dtype: str
) -> tuple[Tensor, range, Tensor, Tensor]:
    """The normed rows of two reductions into a new residual, its rows that a rank owns, these, and `rows` of all."""
    weight = data_of(200, (64,), dtype)
    residual = comm.new_residual(num_tokens, 64, DTYPES[dtype])
    num_rows, is_zero = len(residual), not residual.any()
    for seed in (0, 1):
        hidden = data_of(comm.rank, (num_tokens, 64), dtype, seed)
        normed = comm.all_reduce_rms_norm(hidden, residual, ResidualNorms(weight, 1e-5)).clone()
    assert is_zero
    assert residual.dtype == torch.float32
    own = comm.owned_rows(num_tokens, 64, DTYPES[dtype])
    assert num_rows in (num_tokens, len(own))
    owned = residual[own.start : own.stop] if num_rows == num_tokens else residual
    kept = comm.select_residual(residual, torch.tensor(rows, dtype=torch.int32), num_tokens, DTYPES[dtype])
    return normed, own, owned.clone(), kept


def sequence(comm: Communicator, operations: list[tuple[Any, ...]]) -> list[Any]:
    """One collective after the other, e.g. ("all_reduce", (3,), "int32")."""
    return [globals()[name](comm, *arguments) for name, *arguments in operations]


def fixed_sum_many_times(comm: Communicator, times: int) -> bool:
    """Whether `times` sums, each of other values, were all right."""
    tensor = torch.empty(7)
    for turn in range(times):
        tensor.fill_(turn + comm.rank)
        comm.all_reduce(tensor)
        expected = comm.size * turn + sum(range(comm.size))
        if not torch.equal(tensor, torch.full((7,), float(expected))):
            return False
    return True


def on_rank(comm: Communicator, odd_rank: int, odd: tuple[Any, ...], even: tuple[Any, ...]) -> Any:
    """`odd_rank` makes one call where the others make another."""
    name, *arguments = odd if comm.rank == odd_rank else even
    return globals()[name](comm, *arguments)


def barrier(comm: Communicator) -> None:
    comm.barrier()


def wait_for_command(comm: Communicator) -> bytes:
    return comm.broadcast_bytes(None, root=0, idle=True)


class Never:
    """An event of a device that hangs."""

    def query(self) -> bool:
        return False


def wait_for_a_device_that_hangs(comm: Communicator) -> None:
    comm.wait_for(Never())


def abort(comm: Communicator, reason: str) -> None:
    comm.abort(reason)


def abort_during(comm: Communicator, after_s: float, call: tuple[Any, ...]) -> Any:
    """A call during which rank 0 aborts the job."""
    timer = threading.Timer(after_s, comm.abort, ("no time",))
    if comm.rank == 0:
        timer.start()
    name, *arguments = call
    return globals()[name](comm, *arguments)


def close(comm: Communicator) -> None:
    comm.close()


def kill_self(comm: Communicator) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def all_reduce_specials(comm: Communicator) -> Tensor:
    """Infinity of one rank, minus infinity of one, and not-a-number of one among ones."""
    tensor = torch.ones(3, dtype=torch.bfloat16)
    if comm.rank == comm.size - 1:
        tensor = torch.tensor([float("inf"), float("-inf"), float("nan")], dtype=torch.bfloat16)
    comm.all_reduce(tensor)
    return tensor


def refused_calls(comm: Communicator) -> list[str]:
    """Returns the errors of calls that no rank can make."""
    calls: list[Callable[[], object]] = [
        lambda: comm.all_reduce(torch.zeros(3, dtype=torch.float64)),
        lambda: comm.broadcast(torch.zeros(3), root=comm.size),
        lambda: comm.all_gather(torch.tensor(1.0)),
    ]
    messages = []
    for call in calls:
        try:
            call()
        except CommunicatorError as error:
            messages.append(str(error))
    return messages


def bytes_on_the_wrong_rank(comm: Communicator) -> bytes:
    return comm.broadcast_bytes(None if comm.rank == 0 else b"?", root=0)


def describe(comm: Communicator) -> str:
    return repr(comm)
