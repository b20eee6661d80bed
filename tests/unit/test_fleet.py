"""A Fleet from rows: who holds what, whose record is listed, which version clients may rely on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy_app.domain import Backend, Digest, Fleet, Health, Holding, State
from proxy_app.services.fleet import build, lowest_version
from proxy_app.store.registry import Snapshot


def holding(backend_id: int, name: str, digest: str = "d", **item: Any) -> Holding:
    canonical = f"registry.ollama.ai/library/{name.lower()}"
    return Holding(backend_id, canonical, name, Digest(digest), {"name": name, "digest": digest, **item})


def fleet(states: list[State], *holdings: Holding, before: Fleet | None = None, generation: int = 1) -> Fleet:
    backends = tuple(Backend(n, f"b{n}", f"http://b{n}", n) for n in range(len(states)))
    health = {n: Health(state, 1.0, version="0.33.0") for n, state in enumerate(states)}
    return build(Snapshot(backends, health, holdings, (), (generation, generation)), before)


def names(body: bytes) -> list[str]:
    return [item["name"] for item in json.loads(body)["models"]]


def test_the_best_live_holder_gives_digest_and_record() -> None:
    found = fleet(["up", "up"], holding(1, "m:1", "b", size=1), holding(0, "M:1", "a", size=0))
    [canonical] = found.holders
    assert found.digest(canonical) == "a"
    assert json.loads(found.tags.body)["models"] == [{"name": "M:1", "digest": "a", "size": 0}]


def test_holders_of_another_digest_rank_last_and_the_dead_after_them() -> None:
    found = fleet(
        ["down", "up", "up", "up"],
        holding(0, "m:1", "a"),
        holding(1, "m:1", "a"),
        holding(2, "m:1", "drift"),
        holding(3, "m:1", "a"),
    )
    [holders] = found.holders.values()
    assert [held.backend_id for held in holders] == [1, 3, 2, 0]
    assert [held.backend_id for held in found.live_holders(holders[0].canonical)] == [1, 3, 2]


def test_a_digest_is_that_of_the_remembered_holder_where_nobody_lives() -> None:
    found = fleet(["down"], holding(0, "m:1", "a"))
    [canonical] = found.holders
    assert found.digest(canonical) == "a"
    assert found.live_holders(canonical) == ()
    assert names(found.tags.body) == []


def test_unknown_and_down_backends_are_not_listed() -> None:
    found = fleet(["up", "down", "unknown"], *(holding(n, f"m{n}:1") for n in range(3)))
    assert names(found.tags.body) == ["m0:1"]
    assert len(found.holders) == 3


def test_listings_are_newest_first_then_by_name() -> None:
    found = fleet(
        ["up"],
        holding(0, "b:1", modified_at="2026-01-01T00:00:00.9Z"),
        holding(0, "a:1", modified_at="2026-01-01T00:00:00.1Z"),
        holding(0, "c:1", modified_at="2026-01-01T02:00:00+01:00"),
        holding(0, "d:1", modified_at="no time"),
    )
    assert names(found.tags.body) == ["c:1", "a:1", "b:1", "d:1"]


def test_the_catalogue_is_kept_while_its_generation_stays() -> None:
    first = fleet(["up"], holding(0, "m:1"))
    second = fleet(["up"], holding(0, "m:1"), before=first)
    assert (second.tags, second.holders) == (first.tags, first.holders)
    assert second.tags is first.tags
    third = fleet(["up"], holding(0, "n:1"), before=second, generation=2)
    assert names(third.tags.body) == ["n:1"]
    assert third.tags.etag != first.tags.etag


def test_equal_listings_have_equal_tags_whoever_built_them() -> None:
    assert fleet(["up"], holding(0, "m:1")).tags == fleet(["up"], holding(0, "m:1"), generation=7).tags


@pytest.mark.parametrize(
    ("states", "discovered"),
    [
        ([], False),
        (["unknown"], False),
        (["unknown", "down"], False),
        (["unknown", "up"], True),
        (["down"], True),
        (["down", "up"], True),
    ],
)
def test_discovered_is_one_found_or_all_looked_at(states: list[State], discovered: bool) -> None:
    assert fleet(states).discovered is discovered


@pytest.mark.parametrize(
    ("versions", "lowest"),
    [
        ([], "0.0.0"),
        ([None, ""], "0.0.0"),
        (["0.33.0", "0.9.1"], "0.9.1"),
        (["0.33.0", "0.33.0-rc2"], "0.33.0-rc2"),
        (["0.33.0-rc2", "0.33.0-rc1"], "0.33.0-rc1"),
        (["v0.33.1", "0.33.0"], "0.33.0"),
        (["1.0", "1.0.1"], "1.0"),
        ([None, "0.1.2"], "0.1.2"),
    ],
)
def test_the_lowest_version_is_what_clients_may_rely_on(versions: list[str | None], lowest: str) -> None:
    assert lowest_version(versions) == lowest


@pytest.mark.parametrize("odd", ["9" * 5000, "\u0663.\u0664", "-", "v", "0.33.0-" + "9" * 5000, "9.\u00b2"])
def test_an_odd_version_is_no_version(odd: str) -> None:
    assert lowest_version(["0.33.0", odd]) in ("0.33.0", odd)
