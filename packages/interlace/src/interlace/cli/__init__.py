"""cli: the `interlace` command, one file per subcommand.

The top of the tree: it may import everything below. Nothing here imports torch until a subcommand runs, so that
`interlace --help` answers at once.
"""
