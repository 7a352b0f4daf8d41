"""Sizes of the pools that tests make."""

EXTENT = 4096  # bytes: the least
