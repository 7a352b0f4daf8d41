"""Two tiers on the virtual clock: what is read and written, what that is modelled to cost, and a NumPy view."""

import numpy as np

import emucxl

with emucxl.Context(clock="virtual") as context:
    local = context.add_tier("local", 64 << 20)
    cxl = context.add_tier("cxl", 256 << 20, timing="cxl-direct")

    buffer = cxl.alloc(1 << 20)
    buffer.write(b"hello, tiers")
    print(buffer, "begins with", buffer.read(12))

    start_ns = context.now_ns
    buffer.read(64)
    small_ns = context.now_ns - start_ns
    start_ns = context.now_ns
    buffer.read()
    large_ns = context.now_ns - start_ns
    print(f"64 bytes take {small_ns} ns, 1 MiB takes {large_ns / 1000:.1f} us (modelled)")

    array = np.frombuffer(buffer, np.uint8)  # the same memory: not copied, writable, not priced
    array[-1] = 42
    print("the last byte is", buffer.read(1, offset=len(buffer) - 1)[0])

    try:
        buffer.free()
    except emucxl.EmucxlError as error:
        print(f"{type(error).__name__}: {error}")
    del array

    buffer.migrate(local)  # priced as a read there and a write here
    print(buffer, "still begins with", buffer.read(12))
    buffer.free()

    stats = cxl.stats()
    print(f"cxl: {stats.read_bytes:,} bytes read, {stats.delayed_ns / 1000:.1f} us of modelled time")
