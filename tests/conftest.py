"""Fixtures of every part. This file also puts tests/ on the path, for `support`."""
