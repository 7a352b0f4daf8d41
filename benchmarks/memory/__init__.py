"""The memory library: allocation, threads that allocate, bulk copies, and calls from Python.

A benchmark is a module with NAME, SUMMARY and `run(quick=False, progress=None) -> Report`, as those of `emucxl.bench`
are. `loops` has the loops in C that some of them time.
"""
