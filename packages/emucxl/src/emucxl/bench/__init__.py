"""bench: the measurements of the memory library, one per file, run by `emucxl bench NAME`.

A measurement is a module with NAME, SUMMARY and `run(quick=False, progress=None) -> harness.Report`. It asserts that
what it measures is right before it times it. `harness` and `machine` are what they share.
"""
