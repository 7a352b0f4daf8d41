"""Fixtures of every part."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from benchmarks.harness.namespaces import NetworkHost

# A slow example on a busy machine is no failure; `timeout` in pyproject.toml bounds every test. In continuous
# integration the examples are the same each time, so that a failure tells of the change; people's runs and
# `pytest --hypothesis-profile=deep` look for new ones.
settings.register_profile("interlace", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.register_profile("deep", deadline=None, max_examples=2000)
settings.load_profile("interlace")

# A shell that runs the suite in the background has it ignore Ctrl-C, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def two_hosts() -> Iterator[tuple[NetworkHost, NetworkHost]]:
    """Two network namespaces joined by a cable; see benchmarks.harness.namespaces."""
    from benchmarks.harness.namespaces import NamespacesNotPermitted, two_namespaces

    try:
        with two_namespaces() as hosts:
            yield hosts
    except NamespacesNotPermitted as reason:
        pytest.skip(f"network namespaces are not permitted: {reason}")
