"""Hugging Face directories: config.json as a configuration, and weights in safetensors files."""
