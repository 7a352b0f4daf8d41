"""cache: the KV cache in blocks of tokens, and which sequence owns which."""
