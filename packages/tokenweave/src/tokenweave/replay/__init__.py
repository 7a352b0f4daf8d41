"""Capture and replay: a pass's native calls written down once, and made again by native code in one call.

May import the plan, its executors and the native library; knows nothing of models.
"""
