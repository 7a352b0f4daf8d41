"""CUDA kernels, in Triton.

Those of `all_reduce_rms_norm` (TokenWeave, arXiv 2505.11329, section 3) take three paths, one file each: `multimem`
(the switch adds), `peer` (every rank's rows through pointers), `one_shot` (few tokens). They share `barrier` and
`rows`; `launch` chooses a shape for each. `backend` has those of a decoder layer.

May import triton and tokenweave.kernels. Outside this folder only the `symm_mem` communicator and, when it is asked for
them, `make_kernels` import it, so that triton stays optional.
"""
