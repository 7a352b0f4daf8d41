"""`python -m emucxl`: the same as `emucxl`."""

from emucxl.cli.main import main

if __name__ == "__main__":
    main()
