import os
import re
import threading
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("siblings", "expected"),
    [
        ({0: "0,4", 1: "1,5", 4: "0,4", 5: "1,5"}, [0, 1, 4, 5]),
        ({0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}, [0, 2, 1, 3]),
        ({0: "0-3", 2: "0-3", 9: "8-9"}, [0, 9, 2]),  # 1, 3 and 8 are other processes'
        ({3: "", 4: "?"}, [3, 4]),
        ({7: None}, [7]),
    ],
)
def test_threads_are_spread_over_physical_cores_first(
    siblings: dict[int, str | None], expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(siblings))
    for core, text in siblings.items():
        if text is not None:
            (tmp_path / f"cpu{core}" / "topology").mkdir(parents=True)
            (tmp_path / f"cpu{core}" / "topology" / "thread_siblings_list").write_text(text + "\n")
    assert machine.cores_apart(tmp_path) == expected
