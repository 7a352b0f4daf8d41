"""The fifteen calls of arXiv 2404.08311 in Python, over two nodes: local memory and remote (CXL) memory.

They take and return `Buffer`s where C has pointers, so that what crashes a C program raises here: use of an allocation
that was freed (`ClosedError`), a range that leaves it (`OutOfBoundsError`). Where C answers NULL or false, these raise.
Offsets apply to the allocation alone, `emucxl_resize` keeps the bytes that fit, sizes have 64 bits, and a failing
`emucxl_init` raises instead of ending the process: docs/memory/c.md lists the differences from what was published.

The interface has one set of nodes for the whole process; so has this module. New programs want `emucxl.Context`.

Thread safety: any call from any thread; the last `emucxl_exit` frees everything, and raises InUseError while a view or
another thread's call uses any of it.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

from emucxl.buffer import Buffer
from emucxl.context import Context
from emucxl.errors import ArgumentError, ClosedError, SystemMemoryError
from emucxl.locks import new_lock
from emucxl.tiers import Tier

if TYPE_CHECKING:
    from typing import Any

    from emucxl.context import Clock
    from emucxl.presets import Preset
    from emucxl.timing import Timing

LOCAL_MEMORY = 0
REMOTE_MEMORY = 1
PAGE_SIZE = 4096

_NAMES = ("local", "remote")
_DEFAULT_BYTES, _LEAST_DEFAULT_BYTES = 16 << 30, 1 << 20

_Memory = TypeVar("_Memory")


class _Nodes:
    """The process's nodes, and how many `emucxl_init` lack their `emucxl_exit`."""

    def __init__(self) -> None:
        self.lock = new_lock()
        self.users = 0
        self.context: Context | None = None


_nodes = _Nodes()


def emucxl_init(
    *,
    local_bytes: int | None = None,
    remote_bytes: int | None = None,
    local_timing: Timing | Preset | str | None = None,
    remote_timing: Timing | Preset | str | None = None,
    clock: Clock = "real",
) -> None:
    """Opens the nodes; counted, so that as many `emucxl_exit` are needed.

    Capacities are 16 GiB where left out, or less on a smaller machine; no timing is modelled where none is given. The
    first call decides: later ones may give no other options.

    Raises:
        ArgumentError: options for nodes that are open, or options that make no sense.
        SystemMemoryError, TooFastError: see `Context.add_tier`.
    """
    with _nodes.lock:
        if _nodes.context is not None and not _nodes.context.closed:
            if (local_bytes, remote_bytes, local_timing, remote_timing, clock) != (
                None,
                None,
                None,
                None,
                "real",
            ):
                raise ArgumentError("the nodes are open: expected no options, or a last emucxl_exit() before")
        else:
            _nodes.context = _open((local_bytes, remote_bytes), (local_timing, remote_timing), clock)
            _nodes.users = 0
        _nodes.users += 1


def emucxl_exit() -> None:
    """Balances one `emucxl_init`; the last frees every allocation.

    Raises:
        ClosedError: there was no `emucxl_init`.
        InUseError: views of allocations are alive; everything stays as it is.
    """
    context = emucxl_context()
    with _nodes.lock:
        if _nodes.users == 1:
            context.close()
            _nodes.context = None
        _nodes.users -= 1


def emucxl_context() -> Context:
    """The context behind the nodes, for what the published calls lack. Its tiers are named "local" and "remote".

    Raises:
        ClosedError: before the first `emucxl_init`, or after the last `emucxl_exit`.
    """
    context = _nodes.context
    if context is None or context.closed:
        raise ClosedError("there are no nodes: call emucxl_init() first, and emucxl_exit() last")
    return context


def emucxl_alloc(size: int, node: int) -> Buffer:
    """`size` >= 1 zeroed bytes of the node; aligned to 16, and to PAGE_SIZE from that size on.

    Raises:
        TierFullError: the node is full.
    """
    return _tier(node).alloc(size, PAGE_SIZE if size >= PAGE_SIZE else 0)


def emucxl_free(buffer: Buffer, size: int | None = None) -> None:
    """Frees all of it, whatever `size` says; a second call does nothing.

    Raises:
        InUseError: a view of it is alive.
    """
    buffer.free()


def emucxl_resize(buffer: Buffer, node: int, oldsize: int, newsize: int) -> Buffer:
    """The buffer to use from now on: on `node`, with the bytes that fit in `newsize`, and zeros behind them.

    Its real size counts, not `oldsize`. On failure it is as it was.
    """
    return _move(buffer, node, newsize)


def emucxl_migrate(buffer: Buffer, newnode: int, size: int) -> Buffer:
    """The buffer to use from now on: all of it on `newnode`, and at least `size` bytes long."""
    return _move(buffer, newnode, max(size, buffer.size_bytes))


def emucxl_read(buffer: Buffer, start_index: int, target: Any, size: int) -> bool:
    """Fills the first `size` bytes of `target` (a bytearray, an array, ...) from `start_index` of the allocation on."""
    buffer.read_into(_first(target, size), start_index)
    return True


def emucxl_write(buffer: Buffer, start_index: int, data: Any, size: int) -> bool:
    """Writes the first `size` bytes of `data` to the allocation, from `start_index` on."""
    buffer.write(_first(data, size), start_index)
    return True


def emucxl_memset(buffer: Buffer, start_index: int, value: int, size: int) -> Buffer:
    """Sets `size` bytes to `value`, of which the lowest byte counts."""
    _check_size(size)
    buffer.fill(value & 0xFF, start_index, size)
    return buffer


def emucxl_memcpy(dest: _Memory, src: Any, size: int) -> _Memory:
    """Copies the first `size` bytes of `src` over those of `dest`, and returns `dest`.

    Either may be a Buffer or other memory with the buffer protocol. What is a Buffer is priced. Overlap is allowed.
    """
    if isinstance(dest, Buffer) and isinstance(src, Buffer):
        _check_size(size)
        dest.copy_from(src, size=size)
    elif isinstance(dest, Buffer):
        dest.write(_first(src, size))
    elif isinstance(src, Buffer):
        src.read_into(_first(dest, size))
    else:
        _first(dest, size)[:] = _first(src, size)
    return dest


emucxl_memmove = emucxl_memcpy


def emucxl_is_local(buffer: Buffer) -> bool:
    """Whether it is on LOCAL_MEMORY."""
    return emucxl_get_numa_node(buffer) == LOCAL_MEMORY


def emucxl_get_numa_node(buffer: Buffer) -> int:
    """LOCAL_MEMORY or REMOTE_MEMORY."""
    _ = buffer.size_bytes  # raises for one that was freed
    return _NAMES.index(buffer.tier.name)


def emucxl_get_size(buffer: Buffer) -> int:
    """Its size in bytes, as asked for."""
    return buffer.size_bytes


def emucxl_stats(node: int) -> int:
    """Bytes allocated on a node now, as asked for."""
    return _tier(node).stats().allocated_bytes


def _tier(node: int) -> Tier:
    if node not in (LOCAL_MEMORY, REMOTE_MEMORY):
        raise ArgumentError(f"got node {node!r}; expected LOCAL_MEMORY (0) or REMOTE_MEMORY (1)")
    return emucxl_context().tiers[_NAMES[node]]


def _move(buffer: Buffer, node: int, size_bytes: int) -> Buffer:
    tier = _tier(node)
    if tier is buffer.tier:
        buffer.resize(size_bytes)
        return buffer
    if size_bytes == buffer.size_bytes:
        buffer.migrate(tier)
        return buffer
    with ExitStack() as undo:
        moved = emucxl_alloc(size_bytes, node)
        undo.callback(moved.free)
        moved.copy_from(buffer, size=min(size_bytes, buffer.size_bytes))
        buffer.free()
        undo.pop_all()
    return moved


def _check_size(size: int) -> None:
    if size < 1:
        raise ArgumentError(f"got size {size}; expected at least 1 byte")


def _first(memory: Any, size: int) -> memoryview:
    """The first `size` bytes of memory that is not a tier's."""
    _check_size(size)
    view = memoryview(memory)
    if not view.c_contiguous:
        raise ArgumentError(
            f"got {type(memory)!r} that is not contiguous; expected contiguous bytes, or a copy"
        )
    if size > view.nbytes:
        raise ArgumentError(
            f"got size {size} and {type(memory)!r} of {view.nbytes} bytes; expected at least {size}"
        )
    return view.cast("B")[:size]


def _open(
    capacities: tuple[int | None, int | None], timings: tuple[Timing | Preset | str | None, ...], clock: Clock
) -> Context:
    """Both nodes; those whose capacity nobody chose shrink until the machine has them."""
    default_bytes = _DEFAULT_BYTES
    while True:
        context = Context(clock)
        try:
            for name, capacity, timing in zip(_NAMES, capacities, timings, strict=True):
                context.add_tier(name, default_bytes if capacity is None else capacity, timing=timing)
        except SystemMemoryError:
            context.close()
            if None not in capacities or default_bytes <= _LEAST_DEFAULT_BYTES:
                raise
            default_bytes //= 2
        except BaseException:
            context.close()
            raise
        else:
            return context
