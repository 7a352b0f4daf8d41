"""CUDA kernels of `all_reduce_rms_norm` (TokenWeave, arXiv 2505.11329, section 3), in Triton.

Three paths, one file each: `multimem` (the switch adds), `peer` (every rank's rows through pointers), `one_shot` (few
tokens). They share `barrier` and `rows`; `launch` chooses a shape for each. May import triton and tokenweave.kernels;
nothing outside this folder and `communicators.symm_mem` imports it, so that triton stays optional.
"""
