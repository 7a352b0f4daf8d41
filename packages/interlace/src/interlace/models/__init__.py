"""Models: configuration, weights and tokenizers from files, and the one decoder that runs them all."""
