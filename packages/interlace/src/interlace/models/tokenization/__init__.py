"""How tokenizers are read from what models are published with: a directory's files, or a GGUF file's metadata."""
