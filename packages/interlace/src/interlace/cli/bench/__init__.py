"""`interlace bench`: the speed of the engine on this machine, alone. It takes its clock and report from `emucxl.bench`.

`workload` says what is run, `generation` runs it, `command` measures and prints. `replay` runs what `trace_command`
prints, `bench trace`; `tiered` has the engine whose tiers `kv` measures, `bench kv`. The comparison with other systems
is no part of the package: a checkout's `benchmarks/` has it, and runs the same workloads.
"""
