"""tokenweave: tensor-parallel inference as a plan of steps on lanes (arXiv 2505.11329).

It may import `emucxl` and torch; it knows nothing of requests, models' files or servers.
"""

__version__ = "0.1.0"
