"""Engine: requests in, tokens out. Scheduling, the paged KV cache, sampling, the ranks.

It may import `interlace.models`, `tokenweave` and `emucxl`.
"""
