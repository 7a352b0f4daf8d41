"""`python -m emucxl`: the same as `emucxl`."""

from emucxl.command import main

if __name__ == "__main__":
    main()
