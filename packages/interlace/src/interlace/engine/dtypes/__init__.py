"""dtypes: which number format `auto` is, measured once for each machine and model, and kept."""
