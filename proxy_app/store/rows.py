"""The registry's rows as values of the domain, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from proxy_app.domain import Backend, Digest, Health, Holding
from proxy_app.settings import BackendSettings


def backend_row(backend: BackendSettings, place: int) -> dict[str, Any]:
    return {
        "name": backend.name,
        "url": backend.url,
        "priority": backend.priority,
        "place": place,
        "slots": backend.slots,
        "kind": backend.kind,
        "cloud": None if backend.cloud is None else int(backend.cloud),
        "origin": "env",
        # Secrets of the environment's rows are never stored; those of an operator's row that it replaces go.
        "headers": "{}",
        "auth_token": None,
    }


def backend(row: Mapping[str, Any], configured: Mapping[str, BackendSettings]) -> Backend:
    from_env = configured.get(row["name"]) if row["origin"] == "env" else None
    return Backend(
        id=row["id"],
        name=row["name"],
        url=row["url"],
        priority=row["place"] if row["priority"] is None else row["priority"],
        slots=row["slots"],
        kind=row["kind"],
        cloud=None if row["cloud"] is None else bool(row["cloud"]),
        origin=row["origin"],
        draining=bool(row["draining"]),
        headers=from_env.headers if from_env else tuple(json.loads(row["headers"]).items()),
        auth_token=from_env.auth_token if from_env else row["auth_token"],
    )


def health(row: Mapping[str, Any]) -> Health:
    return Health(
        state=row["state"],
        since=row["since"],
        version=row["version"],
        cloud_disabled=None if row["cloud_disabled"] is None else bool(row["cloud_disabled"]),
        latency_s=row["latency_s"],
        error=row["error"],
        cloud_source=row["cloud_source"],
        recommendations=row["recommendations"],
    )


def health_row(backend_id: int, health: Health) -> dict[str, Any]:
    return {
        "backend_id": backend_id,
        "state": health.state,
        "since": health.since,
        "version": health.version,
        "cloud_disabled": health.cloud_disabled,
        "latency_s": health.latency_s,
        "error": health.error,
        "cloud_source": health.cloud_source,
        "recommendations": health.recommendations,
    }


def holding(row: Mapping[str, Any]) -> Holding:
    return Holding(
        backend_id=row["backend_id"],
        canonical=row["canonical"],
        name=row["name"],
        digest=Digest(row["digest"]),
        item=json.loads(row["item"]),
    )


def holding_row(held: Holding) -> dict[str, Any]:
    return {
        "backend_id": held.backend_id,
        "canonical": held.canonical,
        "name": held.name,
        "digest": held.digest,
        "item": json.dumps(held.item),
    }


def loaded_row(backend_id: int, place: int, item: Mapping[str, Any]) -> dict[str, Any]:
    return {"backend_id": backend_id, "canonical": f"{place}:{item.get('name')}", "item": json.dumps(item)}
