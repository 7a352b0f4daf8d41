"""The barrier between ranks: counters in memory that every rank reaches, one row of them for each CTA.

`pads` is a table of `SIZE` addresses: where this rank reaches each rank's counters, int32 (num_ctas, SIZE). Counter
[cta, peer] of a rank counts the signals that `peer`'s CTA of that number has sent and the rank has not yet taken.

Thread safety: kernels that share pads run one after the other on every rank (one stream), in one order on all ranks.

Invariants:
  1. A counter is 0, 1, or 2 when the peer is one barrier ahead. Every signal that is sent is taken: between calls all
     counters are zero, with nothing to reset.
  2. Only a CTA and its namesakes on the other ranks meet. That is enough for the whole kernel: on every rank a kernel
     ends when all its CTAs have left their last barrier.
  3. A wait ends after `timeout_ns`, or when the host asks for it. The rank has failed then: it never signals again, so
     that no peer takes a later signal for the one it misses, and every later wait ends at its first look.

What is visible after it: with RELAXED, what the peers' earlier kernels wrote (the end of a kernel publishes it, and the
loads that follow bypass the L1 cache); with ORDERED, also what the peers' CTAs wrote before they came here.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tokenweave.kernels.cuda.clock import now_ns
from tokenweave.kernels.cuda.sharing import ABORT, FAILED_RANK

FAILED_WORD, ABORT_WORD = tl.constexpr(FAILED_RANK), tl.constexpr(ABORT)
RELAXED, ORDERED = tl.constexpr(False), tl.constexpr(True)
POLLS_PER_LOOK = tl.constexpr(64)  # about 50 us on an H100, if a poll takes what an L2 atomic does


@triton.jit
def meet(
    pads,  # *int64 (SIZE,)
    failed,  # *int32 (1,), of this rank
    mailbox,  # *int32 (2,), in host memory
    rank,
    timeout_ns,
    SIZE: tl.constexpr,
    PEERS: tl.constexpr,  # SIZE rounded up to a power of two
    IS_ORDERED: tl.constexpr,
):
    """Signals every rank's CTA of this number and waits for a signal of each; false where one did not come."""
    peers = tl.arange(0, PEERS)
    is_peer = peers < SIZE
    row = tl.program_id(0) * SIZE
    # A mask and no branch: warps that read `failed` at different moments must not part ways.
    is_told = tl.where(tl.load(failed, volatile=True) == 0, peers, SIZE) < SIZE
    theirs = tl.load(pads + peers, mask=is_peer, other=0).to(tl.pointer_type(tl.int32))
    tl.debug_barrier()  # the signal speaks for all threads of this CTA
    if IS_ORDERED:
        tl.atomic_add(theirs + row + rank, 1, mask=is_told, sem="release", scope="sys")
    else:
        tl.atomic_add(theirs + row + rank, 1, mask=is_told, sem="relaxed", scope="sys")
    ours = tl.load(pads + rank).to(tl.pointer_type(tl.int32)) + row + peers
    first_missing = await_signals(ours, peers, is_peer, failed, mailbox, rank, timeout_ns, SIZE)
    all_came = first_missing == SIZE
    is_taken = tl.where(all_came, peers, SIZE) < SIZE
    if IS_ORDERED:
        tl.atomic_add(ours, -1, mask=is_taken, sem="acquire", scope="sys")
    else:
        tl.atomic_add(ours, -1, mask=is_taken, sem="relaxed", scope="sys")
    tl.debug_barrier()  # no thread reads before the threads that wait have seen the signals
    return all_came


@triton.jit
def await_signals(ours, peers, is_peer, failed, mailbox, rank, timeout_ns, SIZE: tl.constexpr):
    """Polls until every counter is above zero; the first rank whose counter is not, or SIZE.

    The polls are atomics because Triton hands an atomic's result to all threads of a CTA: all leave the loop together.
    """
    started_ns = now_ns()
    polls = 0
    has_failed = 0
    first_missing = 0
    while (first_missing < SIZE) & (has_failed == 0):
        signals = tl.atomic_add(ours, 0, mask=is_peer, sem="relaxed", scope="sys")
        # Beyond the ranks an atomic gives nothing that counts: there `peers` is SIZE or more.
        first_missing = tl.min(tl.minimum(tl.where(signals > 0, SIZE, peers), SIZE), 0)
        polls += 1
        if polls % POLLS_PER_LOOK == 0:
            is_aborted = tl.load(mailbox + ABORT_WORD, volatile=True) != 0
            is_late = is_aborted | (now_ns() - started_ns > timeout_ns)
            # One thread's view of the clock, told to all; what it sets is seen at the next look.
            has_failed = tl.atomic_max(failed, is_late.to(tl.int32), sem="relaxed", scope="gpu")
    # A rank that has failed misses itself: who came too late has been said by the wait that failed first.
    to_say = tl.where(tl.load(mailbox + FAILED_WORD, volatile=True) == 0, first_missing, SIZE)
    to_say = tl.where(first_missing == rank, SIZE, to_say)
    tl.store(mailbox + FAILED_WORD, to_say + 1, mask=to_say < SIZE)
    return first_missing
