"""The `interlace` command."""
