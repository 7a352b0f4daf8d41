"""Builds a Tokenizer from what models are published with: a Hugging Face directory, or a GGUF file's metadata."""
