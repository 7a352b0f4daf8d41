"""`make bench kv`: the KV cache in tiers of memory, row by row of what was promised of it.

`setting` has what rows share; `hits`, `hidden`, `no_reuse` and `sweep` measure, each with its table; `run` puts them in
order. The engine whose requests find what the asker wants is that of `interlace bench kv`.
"""
