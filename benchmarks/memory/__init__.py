"""The memory library: allocation, threads that allocate, bulk copies, and calls from Python.

A benchmark is a module with NAME and `run(quick=False, progress=None) -> Report`; `commands` has its sentence. `loops`
has the loops in C that some of them time.
"""
