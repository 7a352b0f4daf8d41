"""Engine: requests in, tokens out. Scheduling, the paged KV cache, sampling, and the ranks that run the model."""
