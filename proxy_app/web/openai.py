"""What OpenAI's clients ask of models; the inference routes are in `routes`."""

from __future__ import annotations

from flask import g, request

from proxy_app.web.respond import Raw, from_memory, listing_answer, runtime


def models() -> Raw:
    services = runtime()
    return listing_answer(services.views.models(services.reloader.fleet, g.caller), request, "application/json")


def model(name: str) -> Raw:
    body = runtime().catalog.model(name, g.caller)
    return Raw(body, 200, [("Content-Type", "application/json"), ("Content-Length", str(len(body))), *from_memory()])
