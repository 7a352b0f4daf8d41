"""A pool that does not fit a memory cgroup: refused, not killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.cgroups import real_cgroup

PROGRAM = """
import os, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
from emucxl import errors
from emucxl.pool import Pool
name = f"test-{os.getpid()}"
try:
    Pool.create(name, 400 << 20)
    sys.exit("400 MiB in a group of 200 were not refused")
except errors.SystemMemoryError:
    pass
pool = Pool.create(name, 32 << 20)
pool.path.unlink()
pool.close()
print("refused, not killed")
"""


def test_a_pool_beyond_the_groups_limit_is_refused() -> None:
    limit = str(200 << 20)
    with real_cgroup("memory", {"memory.limit_in_bytes": limit}, {"memory.max": limit}) as group:
        if group is None or not Path("/dev/shm").is_dir():
            pytest.skip("this process may not make a memory cgroup, or there is no /dev/shm")
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(group)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stdout) == (0, "refused, not killed\n"), done.stderr
