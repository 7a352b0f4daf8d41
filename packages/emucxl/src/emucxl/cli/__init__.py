"""cli: the `emucxl` command, one file per subcommand.

It may import everything in emucxl, and typer and rich, which nothing below needs. What a subcommand works with is
imported when it runs, so that `emucxl --help` answers at once.
"""
