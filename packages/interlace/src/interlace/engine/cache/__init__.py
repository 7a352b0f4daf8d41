"""cache: the KV cache, in blocks of tokens.

`blocks` knows which blocks are free and which a sequence has; `layout` says how tokens and bytes lie in them; `sizing`
says how many a rank can hold; `memory` is where the bytes come from; `kv_cache` is one rank's cache, made of these.

Imports configuration, `tokenweave` and `emucxl`; nothing of the loop, and no ranks.
"""
