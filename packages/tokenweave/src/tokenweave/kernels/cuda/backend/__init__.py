"""`CudaKernels`: the arithmetic of a decoder layer on a GPU. Products by torch, the rest in Triton.

One file for each family of kernels, with the names of the files in `tokenweave.kernels` that have their references and
tolerances; `steps` has the parts of attention that are compiled. `start` launches them. May import triton, the parent
folder's `clock` and `available`, and tokenweave.kernels; `make_kernels` imports it when it is asked for these kernels.
"""
