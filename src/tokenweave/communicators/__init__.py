"""Communicators: how the ranks of one tensor-parallel group exchange tensors."""
