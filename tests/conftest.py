"""Fixtures of every part."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.namespaces import Host, NamespacesNotPermitted, two_namespaces


@pytest.fixture
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two network namespaces joined by a cable; see support.namespaces."""
    try:
        with two_namespaces() as hosts:
            yield hosts
    except NamespacesNotPermitted as reason:
        pytest.skip(f"network namespaces are not permitted: {reason}")
