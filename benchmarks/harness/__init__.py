"""The parts that several benchmarks share: options and output, child processes, workers that take turns, two hosts.

The clock, the statistics, the report and its record are `emucxl.bench.harness`.
"""
