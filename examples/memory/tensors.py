"""Torch tensors in a tier: a weight lies in modelled CXL memory, and is used where it lies or fetched."""

import torch

import emucxl

torch.manual_seed(0)

with emucxl.Context(clock="virtual") as context:
    local = context.add_tier("local", 64 << 20)
    cxl = context.add_tier("cxl", 64 << 20, timing="cxl-direct")

    stored = cxl.alloc(256 * 256 * 4, alignment=64)
    weight = (
        torch.from_dlpack(stored).view(torch.float32).view(256, 256)
    )  # no copy: the tensor is the tier's memory
    torch.nn.init.normal_(weight)
    print("the tensor lies at the buffer's address:", weight.data_ptr() == stored.address)

    fetched = local.alloc(len(stored), alignment=64)
    start_ns = context.now_ns
    fetched.copy_from(stored)  # through the interface: priced
    print(f"fetching {len(stored):,} bytes takes {(context.now_ns - start_ns) / 1000:.1f} us (modelled)")

    near = torch.from_dlpack(fetched).view(torch.float32).view(256, 256)
    x = torch.randn(4, 256)
    print("the same product from both:", torch.equal(x @ weight, x @ near))

    try:
        stored.migrate(local)
    except emucxl.EmucxlError as error:
        print(f"{type(error).__name__}: {error}")
    del weight
    stored.migrate(local)
    print("without the tensor it moves:", stored)
    del near
