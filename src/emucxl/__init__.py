"""emucxl: shared and tiered memory for disaggregated systems (arXiv 2404.08311).

The lowest layer: it knows nothing of tensors or models and imports neither `tokenweave` nor `interlace`.
"""
