"""The benchmarks of the three packages, run from a checkout: `make bench NAME`. Nothing here is shipped.

Each folder measures one thing: `serve` the engine beside its peers, `weave` what weaving hides, `kernels` single
operations, `memory` the memory library. `peers` runs inside the Python of a system that is compared, and imports
nothing of this project. `harness` starts processes and hosts. What times, judges and records figures is
`emucxl.bench.harness`, which the commands `emucxl bench` and `interlace bench` use too.
"""
