"""The barrier between ranks: counters in memory that every rank reaches, two rows of them for each CTA.

`pads` is a table of `SIZE` addresses: where this rank reaches each rank's counters, int32 (num_ctas, 2, SIZE). A CTA
counts the meetings that it has left in its epoch, and every other meeting uses the same row. Counter [cta, row, peer]
of a rank holds the signal that `peer`'s CTA of that number has sent and the rank has not yet taken: the call's tag.

Thread safety: kernels that share pads run one after the other on every rank (one stream), in one order on all ranks.

Invariants:
  1. A counter is 0, or the tag of the one call in which the peer waits there: a peer sends the next signal to the same
     counter only after the meeting in between, to which this rank came after it had taken the last. Every signal that
     is sent is taken: between calls all counters are zero, with nothing to reset.
  2. Only a CTA and its namesakes on the other ranks meet. That is enough for the whole kernel: on every rank a kernel
     ends when all its CTAs have left their last barrier. A call may have fewer CTAs than the one before; the epochs of
     the others then stay, on all ranks alike.
  3. Every rank's signal is its own tag. A rank that finds another tag has been called with something else than that
     peer, which finds the same: both fail at once.
  4. A wait ends after `timeout_ns`, or when the host asks for it. The rank has failed then: it never signals again, so
     that no peer takes a later signal for the one it misses, and every later wait ends at its first look.
  5. The wait that failed first on its rank tells the host whom it could not meet; no other does. A wait that ends well
     reads and writes no host memory: that would take a trip over PCIe.

What is visible after it: with RELAXED, what the peers' earlier kernels wrote (the end of a kernel publishes it, and the
loads that follow bypass the L1 cache); with ORDERED, also what the peers' CTAs wrote before they came here.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tokenweave.kernels.cuda import sharing
from tokenweave.kernels.cuda.clock import now_ns

SAID, ABORT = tl.constexpr(sharing.SAID), tl.constexpr(sharing.ABORT)
WORDS_PER_CTA = tl.constexpr(sharing.WORDS_PER_CTA)
CAME_BIT = tl.constexpr(sharing.RANK_BITS)
CALLED_BIT = tl.constexpr(sharing.RANK_BITS + sharing.TAG_BITS)
RELAXED, ORDERED = tl.constexpr(False), tl.constexpr(True)
POLLS_PER_LOOK = tl.constexpr(64)  # about 50 us on an H100, if a poll takes what an L2 atomic does


@triton.jit
def meet(
    pads,  # *int64 (SIZE,)
    failed,  # *int32 (1,), of this rank
    mailbox,  # *int64 (2,), in host memory
    rank,
    tag,  # int32, of this call; the same on every rank
    epoch,  # int32: how many meetings this CTA has left
    timeout_ns,
    SIZE: tl.constexpr,
    PEERS: tl.constexpr,  # SIZE rounded up to a power of two
    IS_ORDERED: tl.constexpr,
):
    """Signals every rank's CTA of this number and waits for a signal of each; false where one did not come."""
    peers = tl.arange(0, PEERS)
    is_peer = peers < SIZE
    row = (tl.program_id(0) * WORDS_PER_CTA + (epoch & 1)) * SIZE
    failed_before = tl.load(failed, volatile=True)
    # A mask and no branch: warps that read `failed` at different moments must not part ways.
    is_told = tl.where(failed_before == 0, peers, SIZE) < SIZE
    theirs = tl.load(pads + peers, mask=is_peer, other=0).to(tl.pointer_type(tl.int32))
    tl.debug_barrier()  # the signal speaks for all threads of this CTA
    if IS_ORDERED:
        tl.atomic_add(theirs + row + rank, tag, mask=is_told, sem="release", scope="sys")
    else:
        tl.atomic_add(theirs + row + rank, tag, mask=is_told, sem="relaxed", scope="sys")
    ours = tl.load(pads + rank).to(tl.pointer_type(tl.int32)) + row + peers
    state = await_signals(ours, peers, is_peer, failed, failed_before, mailbox, tag, timeout_ns, SIZE)
    all_came = state == SIZE
    is_taken = tl.where(all_came, peers, SIZE) < SIZE
    if IS_ORDERED:
        tl.atomic_add(ours, -tag, mask=is_taken, sem="acquire", scope="sys")
    else:
        tl.atomic_add(ours, -tag, mask=is_taken, sem="relaxed", scope="sys")
    tl.debug_barrier()  # no thread reads before the threads that wait have seen the signals
    return all_came


@triton.jit
def await_signals(ours, peers, is_peer, failed, failed_before, mailbox, tag, timeout_ns, SIZE: tl.constexpr):
    """Polls until every counter holds `tag`: SIZE; else the first rank that did not come, or, less SIZE, came wrongly.

    The polls are atomics because Triton (3.5 and newer) hands an atomic's result to all threads of a CTA: all leave the
    loop together.
    """
    started_ns = now_ns()
    own = tl.program_id(0) + 1
    polls = 0
    stopped_by = 0  # `failed`, as of the last look
    state = 0
    signals = tl.zeros_like(peers)
    while (state >= 0) & (state < SIZE) & (stopped_by == 0):
        signals = tl.atomic_add(ours, 0, mask=is_peer, sem="relaxed", scope="sys")
        states = tl.where(signals == tag, SIZE, tl.where(signals == 0, peers, peers - SIZE))
        state = tl.min(
            tl.where(is_peer, states, SIZE), 0
        )  # beyond the ranks an atomic gives nothing that counts
        polls += 1
        if polls % POLLS_PER_LOOK == 0:
            is_aborted = tl.load(mailbox + ABORT, volatile=True) != 0
            is_late = is_aborted | (now_ns() - started_ns > timeout_ns)
            # One thread's view of the clock, told to all; what it sets is seen at the next look.
            stopped_by = tl.atomic_cas(failed, 0, tl.where(is_late, own, 0), sem="relaxed", scope="gpu")
    if state != SIZE:
        peer = tl.where(state < 0, state + SIZE, state)
        is_first = (stopped_by == own) & (failed_before == 0)
        if state < 0:
            is_first = tl.atomic_cas(failed, 0, own, sem="relaxed", scope="gpu") == 0
        came = tl.sum(tl.where(peers == peer, signals, 0), 0).to(tl.int64)
        said = (peer + 1).to(tl.int64) | (came << CAME_BIT) | (tag.to(tl.int64) << CALLED_BIT)
        tl.store(mailbox + SAID, said, mask=is_first)
    return state
