"""Quality: what weights in blocks cost in accuracy."""
