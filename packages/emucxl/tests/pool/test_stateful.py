"""A pool against a model: several hosts, some of which die, do anything in any order."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from emucxl import errors
from emucxl.pool import Host, Pool, Region

EXTENT = 4096
NUM_EXTENTS = 24
QUOTA_EXTENTS = 12
TAGS = ["a", "b", "c", "d"]
NUM_HOSTS = 3

tags = st.sampled_from(TAGS)
hosts = st.integers(0, NUM_HOSTS - 1)
sizes = st.integers(1, 10 * EXTENT)


@dataclass
class ModelRegion:
    content: bytearray
    persistent: bool
    owner: int | None
    holders: dict[int, bool] = field(default_factory=dict)  # host: writable
    bad_extents: set[int] = field(default_factory=set)

    @property
    def num_extents(self) -> int:
        return -(-len(self.content) // EXTENT)


class PoolMachine(RuleBasedStateMachine):
    @initialize()
    def create(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "pool"
        self.pools = [Pool.create(self.path, NUM_EXTENTS * EXTENT, extent_bytes=EXTENT, max_regions=8)]
        self.pools += [Pool.open(self.path) for _ in range(NUM_HOSTS - 1)]
        self.hosts: list[Host | None] = [None] * NUM_HOSTS
        self.open: dict[tuple[int, str], Region] = {}
        self.model: dict[str, ModelRegion] = {}
        self.num_retired = 0

    def teardown(self) -> None:
        if hasattr(self, "pools"):
            for pool in self.pools:
                pool.close()
            self.directory.cleanup()

    # ---- the model

    def owned(self, host: int) -> int:
        return sum(region.num_extents for region in self.model.values() if region.owner == host)

    def free(self) -> int:
        held = sum(region.num_extents for region in self.model.values())
        return NUM_EXTENTS - self.num_retired - held

    def let_go(self, host: int, tag: str) -> None:
        region = self.model[tag]
        del region.holders[host]
        if region.owner == host:
            region.owner = None
        if not region.holders and not region.persistent:
            self.num_retired += len(region.bad_extents)
            del self.model[tag]

    def forget_host(self, host: int) -> None:
        self.hosts[host] = None
        for holder, tag in [key for key in self.open if key[0] == host]:
            del self.open[holder, tag]
            self.let_go(host, tag)

    # ---- hosts

    @rule(host=hosts)
    def join(self, host: int) -> None:
        if self.hosts[host] is None:
            self.hosts[host] = self.pools[host].join(
                f"host {host}", heartbeat=False, lease_s=600, quota_bytes=QUOTA_EXTENTS * EXTENT
            )

    @rule(host=hosts)
    def leave(self, host: int) -> None:
        member = self.hosts[host]
        if member is not None:
            member.leave()
            self.forget_host(host)

    @rule(host=hosts)
    def heartbeat(self, host: int) -> None:
        member = self.hosts[host]
        if member is not None:
            member.heartbeat()

    @precondition(lambda self: any(self.hosts))
    @rule(host=hosts)
    def reopen_the_pool(self, host: int) -> None:
        self.pools[host].close()
        self.forget_host(host)
        self.pools[host] = Pool.open(self.path)

    @rule(host=hosts)
    def reclaim(self, host: int) -> None:
        assert self.pools[host].reclaim().freed_extents == 0  # nobody left anything

    # ---- regions

    @rule(host=hosts, tag=tags, size=sizes, persistent=st.booleans())
    def carve(self, host: int, tag: str, size: int, persistent: bool) -> None:
        member = self.hosts[host]
        if member is None:
            return
        num_extents = -(-size // EXTENT)
        if self.owned(host) + num_extents > QUOTA_EXTENTS:
            expected: type[errors.EmucxlError] | None = errors.QuotaError
        elif tag in self.model:
            expected = errors.NameTakenError
        else:
            expected = errors.PoolFullError if num_extents > self.free() else None
        if expected is not None:
            with pytest.raises(expected):
                member.carve(tag, size, persistent=persistent)
            return
        self.open[host, tag] = member.carve(tag, size, persistent=persistent)
        self.model[tag] = ModelRegion(bytearray(size), persistent, host, {host: True})

    @rule(host=hosts, tag=tags, writable=st.booleans())
    def open_region(self, host: int, tag: str, writable: bool) -> None:
        member = self.hosts[host]
        if member is None:
            return
        region = self.model.get(tag)
        expected: type[errors.EmucxlError] | None = None
        if region is None:
            expected = errors.NotFoundError
        elif host in region.holders:
            expected = errors.NameTakenError
        elif writable and region.owner is None and self.owned(host) + region.num_extents > QUOTA_EXTENTS:
            expected = errors.QuotaError
        if expected is not None:
            with pytest.raises(expected):
                member.open(tag, writable=writable)
            return
        assert region is not None
        self.open[host, tag] = member.open(tag, writable=writable)
        region.holders[host] = writable
        if writable and region.owner is None:
            region.owner = host

    @rule(host=hosts, tag=tags)
    def close_region(self, host: int, tag: str) -> None:
        if (host, tag) in self.open:
            self.open.pop((host, tag)).close()
            self.let_go(host, tag)

    @rule(host=hosts, tag=tags)
    def release_region(self, host: int, tag: str) -> None:
        if (host, tag) not in self.open:
            return
        if not self.model[tag].holders[host]:
            with pytest.raises(errors.AccessDeniedError):
                self.open[host, tag].release()
            return
        self.open.pop((host, tag)).release()
        self.model[tag].persistent = False
        self.let_go(host, tag)

    @rule(host=hosts, tag=tags, size=sizes)
    def resize(self, host: int, tag: str, size: int) -> None:
        if (host, tag) not in self.open:
            return
        region, model = self.open[host, tag], self.model[tag]
        added = -(-size // EXTENT) - model.num_extents
        adopts = model.owner is None and model.holders[host]
        if not model.holders[host] or model.owner not in (None, host):
            expected: type[errors.EmucxlError] | None = errors.AccessDeniedError
        elif adopts and self.owned(host) + model.num_extents > QUOTA_EXTENTS:
            expected = errors.QuotaError
        else:
            model.owner = host
            expected = None
            if size > len(model.content) and self.owned(host) + added > QUOTA_EXTENTS:
                expected = errors.QuotaError
            elif size > len(model.content) and added > self.free():
                expected = errors.PoolFullError
            elif size < len(model.content) and len(model.holders) > 1:
                expected = errors.InUseError
        if expected is not None:
            with pytest.raises(expected):
                region.resize(size)
            return
        region.resize(size)
        gone = {index for index in model.bad_extents if index >= -(-size // EXTENT)}
        self.num_retired += len(gone)
        model.bad_extents -= gone
        del model.content[size:]
        model.content.extend(bytes(size - len(model.content)))

    @rule(host=hosts, tag=tags, data=st.binary(min_size=1, max_size=200), where=st.floats(0, 1))
    def write(self, host: int, tag: str, data: bytes, where: float) -> None:
        if (host, tag) not in self.open:
            return
        region, model = self.open[host, tag], self.model[tag]
        offset = int(where * (len(model.content) + 10))
        extents = set(range(offset // EXTENT, (offset + len(data) - 1) // EXTENT + 1))
        if not model.holders[host]:
            expected: type[errors.EmucxlError] | None = errors.AccessDeniedError
        elif offset + len(data) > len(model.content):
            expected = errors.OutOfBoundsError
        else:
            expected = errors.PoisonedError if extents & model.bad_extents else None
        if expected is not None:
            with pytest.raises(expected):
                region.write(data, offset)
            return
        region.write(data, offset)
        model.content[offset : offset + len(data)] = data

    @precondition(lambda self: self.num_retired < 4)
    @rule(host=hosts, tag=tags, where=st.floats(0, 0.999))
    def poison(self, host: int, tag: str, where: float) -> None:
        """A whole extent, so that the model needs no lines; and not in a partly used one, whose rest may hold none."""
        if (host, tag) not in self.open:
            return
        model = self.model[tag]
        index = int(where * model.num_extents)
        size = min(EXTENT, len(model.content) - index * EXTENT)
        if size == EXTENT and len(model.bad_extents) < 3:
            self.open[host, tag].poison(index * EXTENT, EXTENT)
            model.bad_extents.add(index)

    # ---- what always holds

    @invariant()
    def tables_are_consistent(self) -> None:
        if hasattr(self, "pools"):
            self.pools[0].check()

    @invariant()
    def tables_agree_with_the_model(self) -> None:
        if not hasattr(self, "pools"):
            return
        stats = self.pools[-1].stats()
        assert stats.free_extents == self.free()
        assert stats.retired_extents == self.num_retired
        shown = {region.tag: region for region in self.pools[-1].regions()}
        assert shown.keys() == self.model.keys()
        for tag, model in self.model.items():
            assert shown[tag].size_bytes == len(model.content)
            assert shown[tag].persistent == model.persistent
            assert len(shown[tag].readers) + len(shown[tag].writers) == len(model.holders)
            assert (shown[tag].owner is None) == (model.owner is None)

    @invariant()
    def every_holder_sees_the_same_bytes(self) -> None:
        for (_, tag), region in getattr(self, "open", {}).items():
            model = self.model[tag]
            for index in range(model.num_extents):
                part = bytes(model.content[index * EXTENT : (index + 1) * EXTENT])
                if index in model.bad_extents:
                    with pytest.raises(errors.PoisonedError):
                        region.read(len(part), index * EXTENT)
                else:
                    assert region.read(len(part), index * EXTENT) == part


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


@pytest.mark.slow
class TestPoolForLonger(PoolMachine.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(max_examples=400, stateful_step_count=60, deadline=None)
