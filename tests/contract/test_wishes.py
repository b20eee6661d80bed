"""Wishes for a poll: asked for by any worker, granted by the refresher alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from proxy_app.errors import Fenced
from proxy_app.settings import BackendSettings
from proxy_app.store.registry import Registry

FLEET = [BackendSettings("a", "http://a"), BackendSettings("b", "http://b")]


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with closing(Registry(tmp_path)) as opened:
        opened.migrate()
        opened.import_backends(FLEET)
        yield opened


@pytest.fixture
def epoch(registry: Registry) -> int:
    claimed = registry.claim("me", time.monotonic())
    assert claimed is not None
    return claimed


def ids(registry: Registry) -> list[int]:
    return [backend.id for backend in registry.snapshot().backends]


def test_a_wish_stands_until_it_is_granted(registry: Registry, epoch: int) -> None:
    a, b = ids(registry)
    wished = registry.wish([a])
    assert registry.wishes() == wished == {a: 1}
    assert not registry.are_granted(wished)
    registry.grant(epoch, wished)
    assert registry.are_granted(wished)
    assert registry.wishes() == {}
    assert registry.wish([a, b]) == {a: 2, b: 1}


def test_what_was_granted_to_one_is_not_granted_to_a_later_one(registry: Registry, epoch: int) -> None:
    (a, _) = ids(registry)
    first, second = registry.wish([a]), registry.wish([a])
    registry.grant(epoch, first)
    assert registry.are_granted(first)
    assert not registry.are_granted(second)
    assert registry.wishes() == second


def test_a_wish_is_seen_by_another_connection(registry: Registry, tmp_path: Path) -> None:
    with closing(Registry(tmp_path)) as other:
        before = other.data_version()
        wished = registry.wish(ids(registry))
        assert other.data_version() != before
        assert other.wishes() == wished


def test_a_backend_that_is_gone_keeps_nobody_waiting(registry: Registry) -> None:
    (_, b) = ids(registry)
    wished = registry.wish([b])
    registry.import_backends(FLEET[:1])
    assert registry.are_granted(wished)
    assert registry.wishes() == {}
    assert registry.wish([b]) == {}


def test_nobody_but_the_refresher_grants(registry: Registry, epoch: int) -> None:
    wished = registry.wish(ids(registry))
    registry.claim("another", time.monotonic(), force=True)
    with pytest.raises(Fenced):
        registry.grant(epoch, wished)
    assert not registry.are_granted(wished)
