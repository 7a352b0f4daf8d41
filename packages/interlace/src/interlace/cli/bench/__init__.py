"""The benchmarks behind `interlace bench`: systems interleaved round by round in one run, correctness before speed.

`workload` says what is run, `systems` who runs it, `worker` starts and pauses them, `drive` takes the samples,
`summary` and `report` turn them into medians, ratios and tables. `peers` is the side inside each system's own process.
"""
