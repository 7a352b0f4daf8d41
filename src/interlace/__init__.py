"""interlace: the engine that serves language models over several ranks and several kinds of memory.

The top layer: it may import `tokenweave` and `emucxl`.
"""
