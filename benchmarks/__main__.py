"""`python -m benchmarks NAME`, which `make bench NAME` calls."""

from benchmarks.command import main

if __name__ == "__main__":
    main()
