"""OpenAI's wire form of the listings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from proxy_app.dialects.errors import compact
from proxy_app.dialects.ollama import modified_unix, namespace


def models(items: Iterable[Mapping[str, Any]]) -> bytes:
    """`GET /v1/models`. An empty fleet is `[]`, where Ollama says null: SDKs iterate over it."""
    ordered = sorted(items, key=lambda item: (-modified_unix(item), str(item.get("name"))))
    return compact({"object": "list", "data": [model(str(item.get("name")), item) for item in ordered]})


def model(name: str, item: Mapping[str, Any]) -> dict[str, Any]:
    """One record of `GET /v1/models`, and the answer of `GET /v1/models/<model>`.

    Args:
        name: as the client wrote it, which Ollama echoes.
        item: a record of `/api/tags`, or a show document: both have `modified_at`.
    """
    return {"id": name, "object": "model", "created": modified_unix(item), "owned_by": namespace(item)}
