"""apps: a queue, a slab allocator and a key-value store, whose bytes live in tiers.

Each uses the public interface of emucxl and nothing else: they are examples as much as they are of use.
"""
