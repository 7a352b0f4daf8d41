"""The copy engine fetches the next block from a slow tier while the program computes on the one it has.

On the virtual clock, so that it prints the same everywhere; `python overlap.py real` takes the times that it prints.
"""

import sys
import zlib

import emucxl

BLOCK_BYTES, NUM_BLOCKS, COMPUTE_NS = 4 << 20, 8, 6_000_000
SLOW = emucxl.Timing(
    read_latency_ns=20_000, write_latency_ns=20_000, read_bandwidth_gbps=0.5, write_bandwidth_gbps=0.5
)


def compute(block: emucxl.Buffer) -> int:
    """Computes a block's checksum. More work, of COMPUTE_NS, is left to the clock."""
    block.context.advance(COMPUTE_NS)
    with memoryview(block) as view:
        return zlib.crc32(view)


def fetch_then_compute(blocks: list[emucxl.Buffer], place: emucxl.Buffer) -> list[int]:
    results = []
    for block in blocks:
        place.copy_from(block)
        results.append(compute(place))
    return results


def fetch_while_computing(
    engine: emucxl.CopyEngine, blocks: list[emucxl.Buffer], places: list[emucxl.Buffer]
) -> list[int]:
    results = []
    arriving = engine.submit([(places[0], blocks[0], BLOCK_BYTES)])
    for number in range(len(blocks)):
        arriving.wait()
        if number + 1 < len(blocks):
            arriving = engine.submit([(places[(number + 1) % 2], blocks[number + 1], BLOCK_BYTES)])
        results.append(compute(places[number % 2]))
    return results


clock = "real" if sys.argv[1:] == ["real"] else "virtual"
with emucxl.Context(clock) as context, emucxl.CopyEngine(context) as engine:
    local = context.add_tier("local", 64 << 20)
    far = context.add_tier("far", 64 << 20, timing=SLOW)
    blocks = [far.alloc(BLOCK_BYTES) for _ in range(NUM_BLOCKS)]
    for number, block in enumerate(blocks):
        with memoryview(block) as view:  # a view is not priced
            view[:] = bytes([number]) * BLOCK_BYTES
    places = [local.alloc(BLOCK_BYTES) for _ in range(2)]

    start_ns = context.now_ns
    one_by_one = fetch_then_compute(blocks, places[0])
    middle_ns = context.now_ns
    overlapped = fetch_while_computing(engine, blocks, places)
    end_ns = context.now_ns

    assert one_by_one == overlapped
    print(f"fetching alone takes   {NUM_BLOCKS * BLOCK_BYTES / 0.5 / 1e6:5.1f} ms (modelled)")
    print(f"computing alone takes  {NUM_BLOCKS * COMPUTE_NS / 1e6:5.1f} ms")
    print(f"fetch, then compute:   {(middle_ns - start_ns) / 1e6:5.1f} ms")
    print(f"fetch while computing: {(end_ns - middle_ns) / 1e6:5.1f} ms")
