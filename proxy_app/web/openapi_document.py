"""The OpenAPI document of the admin API, made from its endpoints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from proxy_app import __version__
from proxy_app.services.admin import shapes
from proxy_app.web.admin_api import ROOT, Endpoint

_PART = re.compile(r"<(\w+)>")
_REFERENCE = "#/components/schemas/{name}"


def document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The document, OpenAPI 3.1."""
    used = {shape for one in endpoints for shape in (one.takes, one.gives, one.query) if shape is not None}
    used.add(shapes.Error)
    by_name = sorted(used, key=lambda shape: shape.__name__)
    references, schemas = msgspec.json.schema_components(by_name, ref_template=_REFERENCE)
    refs = dict(zip(by_name, references, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        path = ROOT + _PART.sub(r"{\1}", endpoint.path)
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, refs, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Caravan admin API", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": _SECURITY},
        "security": [{name: []} for name in _SECURITY],
    }


_SECURITY = {
    "key": {"type": "http", "scheme": "bearer", "description": "A key with the scope `admin`."},
    "login": {"type": "apiKey", "in": "cookie", "name": "caravan", "description": "What a login gives a browser."},
}


def _operation(endpoint: Endpoint, refs: dict[Any, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": endpoint.about,
        "operationId": re.sub(r"\W+", "_", f"{endpoint.method} {endpoint.path}").strip("_").lower(),
        "parameters": [*_path_parameters(endpoint), *_query_parameters(endpoint, schemas)],
        "responses": {str(endpoint.status): _good(endpoint, refs), "default": _bad(refs)},
    }
    if endpoint.takes is not None:
        content = {"application/json": {"schema": refs[endpoint.takes]}}
        operation["requestBody"] = {"required": True, "content": content}
    if endpoint.scope == "open":
        operation["security"] = []
    return operation


def _path_parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]+$"}}
        for name in _PART.findall(endpoint.path)
    ]


def _query_parameters(endpoint: Endpoint, schemas: dict[str, Any]) -> list[dict[str, Any]]:
    if endpoint.query is None:
        return []
    properties = schemas[endpoint.query.__name__]["properties"]
    return [{"name": name, "in": "query", "schema": schema} for name, schema in properties.items()]


def _good(endpoint: Endpoint, refs: dict[Any, Any]) -> dict[str, Any]:
    if endpoint.gives is not None:
        return {"description": "Done.", "content": {endpoint.kind: {"schema": refs[endpoint.gives]}}}
    if endpoint.status == 204:
        return {"description": "Done."}
    return {"description": "Done.", "content": {endpoint.kind: {"schema": {"type": "string"}}}}


def _bad(refs: dict[Any, Any]) -> dict[str, Any]:
    schema = refs[shapes.Error]
    return {"description": "Refused, and why.", "content": {"application/json": {"schema": schema}}}
