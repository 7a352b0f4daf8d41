"""The published experiment on a two-tier key-value store (arXiv 2404.08311): its requests, its figures, and its limit.

1000 keys are put, 300 of which fit the local tier. Then come 50,000 GETs: 45,000 of the first x % of the keys, then
5,000 of the others (x = 0: all 50,000 of any key), drawn with the C library's `rand` from seed 1.
"""

from __future__ import annotations

import ctypes
import heapq
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from emucxl.apps.kvstore import KVStats, KVStore, Limit
from emucxl.errors import CorruptError

if TYPE_CHECKING:
    from emucxl.tiers import Tier

NUM_KEYS, LOCAL_SLOTS = 1000, 300
NUM_GETS, NUM_HOT_GETS = 50_000, 45_000
SEED = 1
XS = tuple(range(0, 100, 10))  # per cent of the keys that get 90 % of the GETs; 0: all keys alike

# Local hits in per cent of all GETs, for each of XS: results/kv_results.txt of the published repository.
PUBLISHED: dict[str, tuple[float, ...]] = {
    "promote": (29.79, 81.37, 50.95, 28.58, 18.03, 14.87, 12.67, 12.68, 22.22, 30.43),
    "leave": (30.01, 3.29, 3.77, 4.28, 4.94, 5.94, 7.57, 10.00, 21.17, 29.95),
}
_GLIBC_FIRST = (1804289383, 846930886, 1681692777)  # what glibc's rand gives from seed 1


def has_published_rand() -> bool:
    """Whether this system's C library draws the numbers that the published figures came from (glibc's does)."""
    library = ctypes.CDLL(None)
    library.srand(SEED)
    return tuple(library.rand() for _ in _GLIBC_FIRST) == _GLIBC_FIRST


def requests(x: int) -> list[int]:
    """The keys (1 to 1000) of the GETs, in order, drawn as the published program drew them."""
    library = ctypes.CDLL(None)
    rand = library.rand
    library.srand(SEED)
    if x == 0:
        return [rand() % NUM_KEYS + 1 for _ in range(NUM_GETS)]
    num_hot = x * NUM_KEYS // 100
    hot = [rand() % num_hot + 1 for _ in range(NUM_HOT_GETS)]
    return hot + [rand() % (NUM_KEYS - num_hot) + num_hot + 1 for _ in range(NUM_GETS - NUM_HOT_GETS)]


def mixed(keys: Sequence[int]) -> list[int]:
    """The same GETs in random order: the hot keys stay hot to the end, instead of the load changing once."""
    shuffled = list(keys)
    random.Random(SEED).shuffle(shuffled)
    return shuffled


def play(keys: Sequence[int], policy: str, local: Tier, remote: Tier) -> KVStats:
    """Puts every key, then does the GETs, checking each value.

    Raises:
        CorruptError: a GET gave another value than was put.
    """
    names = [b"key%d" % number for number in range(NUM_KEYS + 1)]
    values = [b"value%d" % number for number in range(NUM_KEYS + 1)]
    with KVStore(local, remote, policy, Limit(entries=LOCAL_SLOTS), Limit(entries=NUM_KEYS)) as store:
        for number in range(1, NUM_KEYS + 1):
            store.put(names[number], values[number])
        for number in keys:
            if store.get(names[number]) != values[number]:
                raise CorruptError(f"policy {policy}: the value of {names[number]!r} is not what was put")
        return store.stats()


def percentage(num_local: int, total: int) -> float:
    """Cut off after two digits, in the single precision of the published program."""
    single = ctypes.c_float
    ratio = single(single(100 * single(num_local).value).value / single(total).value).value
    return int(single(ratio * 100).value) / 100.0


def clairvoyant(keys: Sequence[int]) -> int:
    """The most local hits that any policy could have: Belady's rule, which knows the requests to come.

    A remote key becomes local when it is needed again sooner than the local key that is needed again last.
    """
    never = len(keys)
    following = [0] * never  # where each request's key comes again
    upcoming: dict[int, int] = {}
    for place in range(never - 1, -1, -1):
        following[place] = upcoming.get(keys[place], never)
        upcoming[keys[place]] = place
    local = {key: upcoming.get(key, never) for key in range(NUM_KEYS - LOCAL_SLOTS + 1, NUM_KEYS + 1)}
    latest = [(-again, key) for key, again in local.items()]  # some entries are of the past: `local` tells
    heapq.heapify(latest)
    hits = 0
    for place, key in enumerate(keys):
        again = following[place]
        if key in local:
            hits += 1
        else:
            while -latest[0][0] != local.get(latest[0][1]):
                heapq.heappop(latest)
            if -latest[0][0] <= again:
                continue
            del local[heapq.heappop(latest)[1]]
        local[key] = again
        heapq.heappush(latest, (-again, key))
    return hits
