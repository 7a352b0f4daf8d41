import os
import re
import threading

from emucxl.bench import machine


def test_the_slug_is_a_folder_name() -> None:
    assert re.fullmatch(r"[a-z0-9-]+-\d+-cores", machine.slug())


def test_busy_cores_are_between_none_and_all() -> None:
    stop = threading.Event()
    spinner = threading.Thread(target=lambda: [None for _ in iter(stop.is_set, True)])
    spinner.start()
    busy = machine.busy_cores(0.3)
    stop.set()
    spinner.join()
    assert 0.0 < busy <= (os.cpu_count() or 1) + 0.5  # ticks are coarse


def test_the_record_of_a_checkout_names_its_commit() -> None:
    source = machine.source()
    assert source["commit"] is None or re.fullmatch(r"[0-9a-f]{40}", source["commit"])
    assert machine.describe()["memory_bytes"] > 0
