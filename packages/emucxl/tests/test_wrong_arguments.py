"""Wrong types and values, passed to the whole public interface: always an error of emucxl, with what was expected."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import emucxl
from emucxl.errors import EmucxlError
from emucxl.links import LinkConfig
from emucxl.pool import pool_path

# One call each, with `it` for what is open and `wrong` for what does not belong there.
WHERE_A_NUMBER_BELONGS: dict[str, Callable[[Any, Any], object]] = {
    "add_tier capacity": lambda it, wrong: it.context.add_tier("t", wrong),
    "tier.alloc": lambda it, wrong: it.tier.alloc(wrong),
    "tier.alloc alignment": lambda it, wrong: it.tier.alloc(64, wrong),
    "context.alloc": lambda it, wrong: it.context.alloc(wrong, "a"),
    "context.query": lambda it, wrong: it.context.query(wrong),
    "context.advance": lambda it, wrong: it.context.advance(wrong),
    "tier.poison address": lambda it, wrong: it.tier.poison(wrong, 64),
    "tier.poison size": lambda it, wrong: it.tier.poison(it.buffer.address, wrong),
    "buffer.read offset": lambda it, wrong: it.buffer.read(1, wrong),
    "buffer.write offset": lambda it, wrong: it.buffer.write(b"x", wrong),
    "buffer.fill": lambda it, wrong: it.buffer.fill(wrong),
    "buffer.resize": lambda it, wrong: it.buffer.resize(wrong),
    "buffer.copy_from offset": lambda it, wrong: it.buffer.copy_from(it.buffer, wrong),
    "read_batch offset": lambda it, wrong: it.context.read_batch([(it.buffer, wrong, bytearray(1))]),
    "engine threads": lambda it, wrong: emucxl.CopyEngine(it.context, wrong),
    "engine.submit size": lambda it, wrong: it.engine.submit([(it.buffer, it.buffer, wrong)]),
    "completion.wait": lambda it, wrong: it.engine.submit([(it.buffer, it.other, 64)]).wait(wrong),
    "link bandwidth": lambda it, wrong: emucxl.Link.create(wrong),
    "link latency": lambda it, wrong: emucxl.Link.create(1.0, latency_ns=wrong),
    "link.attach": lambda it, wrong: emucxl.Link.attach(wrong),
    "link.reserve size": lambda it, wrong: it.link.reserve("read", wrong, 0),
    "link.reserve time": lambda it, wrong: it.link.reserve("read", 1, wrong),
    "timing": lambda it, wrong: emucxl.Timing(wrong, 1),
    "timing bandwidth": lambda it, wrong: emucxl.Timing(1, 1, read_bandwidth_gbps=wrong),
    "curve point": lambda it, wrong: emucxl.Timing(1, 1, curve=(emucxl.CurvePoint(wrong, 1),)),
    "calibration": lambda it, wrong: emucxl.Calibration(wrong, 1, 1, 1, 1, 1, 1),
    "pool size": lambda it, wrong: emucxl.Pool.create(it.path / "new", wrong),
    "pool extents": lambda it, wrong: emucxl.Pool.create(it.path / "new", 1, extent_bytes=wrong),
    "pool regions": lambda it, wrong: emucxl.Pool.create(it.path / "new", 1, max_regions=wrong),
    "pool.join lease": lambda it, wrong: it.pool.join("h", lease_s=wrong),
    "pool.join quota": lambda it, wrong: it.pool.join("h", quota_bytes=wrong),
    "pool.poison": lambda it, wrong: it.pool.poison(0, wrong),
    "host.carve size": lambda it, wrong: it.host.carve("t", wrong),
    "host.carve room": lambda it, wrong: it.host.carve("t", 1, max_bytes=wrong),
    "region.read": lambda it, wrong: it.region.read(wrong),
    "region.read offset": lambda it, wrong: it.region.read(1, wrong),
    "region.write offset": lambda it, wrong: it.region.write(b"x", wrong),
    "region.fill": lambda it, wrong: it.region.fill(wrong),
    "region.resize": lambda it, wrong: it.region.resize(wrong),
    "region.poison": lambda it, wrong: it.region.poison(wrong, 64),
    "region.check_access": lambda it, wrong: it.region.check_access(wrong, 1),
    "cache capacity": lambda it, wrong: emucxl.Cache(it.segment, capacity_bytes=wrong),
    "cache seed": lambda it, wrong: emucxl.Cache(it.segment, seed=wrong),
    "cache hit": lambda it, wrong: emucxl.Cache(it.segment, context=it.context, hit_latency_ns=wrong),
    "cache.read": lambda it, wrong: it.cache.read(wrong),
    "cache.write offset": lambda it, wrong: it.cache.write(b"x", wrong),
    "cache.flush": lambda it, wrong: it.cache.flush(wrong),
    "cache.invalidate": lambda it, wrong: it.cache.invalidate(wrong),
    "cache.load_u64": lambda it, wrong: it.cache.load_u64(wrong),
    "cache.store_u64": lambda it, wrong: it.cache.store_u64(0, wrong),
    "segment": lambda it, wrong: emucxl.SharedSegment.create("s", wrong),
    "segment.attach": lambda it, wrong: emucxl.SharedSegment.attach(it.segment.fd, wrong),
    "segment.attach fd": lambda it, wrong: emucxl.SharedSegment.attach(wrong, 4096),
    "numa": lambda it, wrong: it.context.add_tier("t", 4096, emucxl.Numa(wrong)),
    "shm fd": lambda it, wrong: it.context.add_tier("t", 4096, emucxl.Shm(fd=wrong)),
}
WHERE_TEXT_BELONGS: dict[str, Callable[[Any, Any], object]] = {
    "context clock": lambda it, wrong: emucxl.Context(wrong),
    "add_tier": lambda it, wrong: it.context.add_tier(wrong, 4096),
    "context.tier": lambda it, wrong: it.context.tier(wrong),
    "buffer.migrate": lambda it, wrong: it.buffer.migrate(wrong),
    "preset": lambda it, wrong: emucxl.preset(wrong),
    "pool.join": lambda it, wrong: it.pool.join(wrong),
    "host.carve": lambda it, wrong: it.host.carve(wrong, 1),
    "host.open": lambda it, wrong: it.host.open(wrong),
    "link.reserve": lambda it, wrong: it.link.reserve(wrong, 1, 0),
    "segment": lambda it, wrong: emucxl.SharedSegment.create(wrong, 4096),
    "pool path": lambda it, wrong: pool_path(wrong),
    "pool.open": lambda it, wrong: emucxl.Pool.open(wrong),
    "pool.create": lambda it, wrong: emucxl.Pool.create(wrong, 4096),
    "link.open": lambda it, wrong: emucxl.Link.open(wrong, LinkConfig(1.0)),
    "shm path": lambda it, wrong: it.context.add_tier("t", 4096, emucxl.Shm(path=wrong)),
    "dax path": lambda it, wrong: it.context.add_tier("t", 0, emucxl.Dax(wrong)),
}
WHERE_AN_OBJECT_BELONGS: dict[str, Callable[[Any, Any], object]] = {
    "context calibration": lambda it, wrong: emucxl.Context("virtual", wrong),
    "add_tier provider": lambda it, wrong: it.context.add_tier("t", 4096, wrong),
    "add_tier timing": lambda it, wrong: it.context.add_tier("t", 4096, timing=wrong),
    "add_tier link": lambda it, wrong: it.context.add_tier("t", 4096, link=wrong),
    "region memory": lambda it, wrong: it.context.add_tier("t", 0, emucxl.RegionMemory(wrong)),
    "buffer.write": lambda it, wrong: it.buffer.write(wrong),
    "buffer.read_into": lambda it, wrong: it.buffer.read_into(wrong),
    "buffer.copy_from": lambda it, wrong: it.buffer.copy_from(wrong),
    "read_batch": lambda it, wrong: it.context.read_batch([wrong]),
    "write_batch": lambda it, wrong: it.context.write_batch([(it.buffer, 0, wrong)]),
    "engine context": lambda it, wrong: emucxl.CopyEngine(wrong),
    "engine.submit": lambda it, wrong: it.engine.submit([wrong]),
    "engine.submit source": lambda it, wrong: it.engine.submit([(it.buffer, wrong, 1)]),
    "engine.submit destination": lambda it, wrong: it.engine.submit([(wrong, it.buffer, 1)]),
    "link.open config": lambda it, wrong: emucxl.Link.open(it.path / "link", wrong),
    "host.carve sharing": lambda it, wrong: it.host.carve("t", 1, sharing=wrong),
    "region.write": lambda it, wrong: it.region.write(wrong),
    "cache": lambda it, wrong: emucxl.Cache(wrong),
    "cache mode": lambda it, wrong: emucxl.Cache(it.segment, wrong),
    "cache context": lambda it, wrong: emucxl.Cache(it.segment, context=wrong),
    "cache link": lambda it, wrong: emucxl.Cache(it.segment, context=it.context, link=wrong),
    "cache.write": lambda it, wrong: it.cache.write(wrong),
    "timing curve": lambda it, wrong: emucxl.Timing(1, 1, curve=(wrong,)),
}


@pytest.fixture(scope="module")
def it(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One of everything, open."""
    path: Path = tmp_path_factory.mktemp("arguments")
    with (
        emucxl.Context("virtual") as context,
        emucxl.Link.create(10.0) as link,
        emucxl.SharedSegment.create("arguments", 4096) as segment,
        emucxl.Cache(segment) as cache,
        emucxl.Pool.create(path / "pool", 8 << 20) as pool,
        pool.join("host") as host,
        host.carve("region", 1 << 20) as region,
    ):
        tier = context.add_tier("a", 1 << 20)
        with emucxl.CopyEngine(context) as engine:
            yield SimpleNamespace(
                context=context, link=link, segment=segment, cache=cache, pool=pool, host=host, region=region,
                tier=tier, buffer=tier.alloc(64), other=tier.alloc(64), engine=engine, path=path,
            )  # fmt: skip


def refuse(call: Callable[[Any, Any], object], it: Any, wrong: Any) -> None:
    with pytest.raises(EmucxlError) as refused:
        call(it, wrong)
    assert str(refused.value)
    it.context.check()
    it.pool.check()


@pytest.mark.parametrize("wrong", ["4096", b"1", None.__class__, [], 1j, -(1 << 70), float("nan")], ids=repr)
@pytest.mark.parametrize("call", WHERE_A_NUMBER_BELONGS)
def test_what_is_no_number_is_refused(call: str, wrong: Any, it: Any) -> None:
    refuse(WHERE_A_NUMBER_BELONGS[call], it, wrong)


@pytest.mark.parametrize("wrong", [5, None, 1.5, [], object(), "", "a\0b", "\ud800" * 300], ids=ascii)
@pytest.mark.parametrize("call", WHERE_TEXT_BELONGS)
def test_what_is_no_text_is_refused(call: str, wrong: Any, it: Any) -> None:
    if call == "shm path" and wrong is None:
        pytest.skip("a memfd")
    refuse(WHERE_TEXT_BELONGS[call], it, wrong)


@pytest.mark.parametrize("wrong", [5, "x", 1.5, object(), {}], ids=lambda wrong: type(wrong).__name__)
@pytest.mark.parametrize("call", WHERE_AN_OBJECT_BELONGS)
def test_what_is_no_such_object_is_refused(call: str, wrong: Any, it: Any) -> None:
    refuse(WHERE_AN_OBJECT_BELONGS[call], it, wrong)


@pytest.mark.parametrize("wrong", [None, 5, object()], ids=lambda wrong: type(wrong).__name__)
@pytest.mark.parametrize("call", ["engine.submit", "context.read_batch", "context.write_batch"])
def test_what_holds_no_items_is_refused(call: str, wrong: Any, it: Any) -> None:
    owner, method = call.split(".")
    refuse(lambda it, wrong: getattr(getattr(it, owner), method)(wrong), it, wrong)


@pytest.mark.parametrize("call", ["engine.submit", "context.read_batch", "context.write_batch"])
def test_what_a_callers_iterator_raises_goes_through(call: str, it: Any) -> None:
    owner, method = call.split(".")
    with pytest.raises(TypeError, match="division by zeal"):
        getattr(getattr(it, owner), method)(_raising())
    it.context.check()


def _raising() -> Iterator[Any]:
    raise TypeError("division by zeal")
    yield
