"""Kernels: the arithmetic of a decoder layer, each beside its reference and tolerance."""
