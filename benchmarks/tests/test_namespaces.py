"""Two hosts on one machine, and what is left of them."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.harness.namespaces import PREFIX, NetworkHost


def names() -> set[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in listed.splitlines()}


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not(
    two_hosts: tuple[NetworkHost, NetworkHost],
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    orphan = f"{PREFIX}{dead.pid}-1"
    subprocess.run(["ip", "netns", "add", orphan], check=True)
    living = {host.namespace for host in two_hosts}
    assert names() >= {orphan, *living}
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    others = f"{PREFIX}{sleeper.pid}-1"
    try:
        subprocess.run(["ip", "netns", "add", others], check=True)
        script = (
            "from benchmarks.harness.namespaces import two_namespaces\nwith two_namespaces() as hosts: pass"
        )
        subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
        assert names() >= {others, *living}
        assert orphan not in names()
    finally:
        sleeper.kill()
        sleeper.wait()
        subprocess.run(["ip", "netns", "delete", others], check=False)
