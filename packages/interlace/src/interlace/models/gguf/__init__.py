"""GGUF models: the file and its parts, their metadata as a configuration, weights and tokenizer."""
