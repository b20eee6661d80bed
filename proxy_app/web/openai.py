"""The routes of OpenAI's clients."""

from __future__ import annotations

from flask import Blueprint, request

from proxy_app.web.relayed import relayed
from proxy_app.web.respond import Raw, from_memory, listing_answer, runtime

blueprint = Blueprint("openai", __name__, url_prefix="/v1")

for path in (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/audio/transcriptions",
):
    blueprint.add_url_rule(path.removeprefix("/v1"), view_func=relayed(path), methods=["POST"])


@blueprint.get("/models")
def models() -> Raw:
    return listing_answer(runtime().reloader.fleet.models, request, "application/json")


@blueprint.get("/models/<path:name>")
def model(name: str) -> Raw:
    body = runtime().catalog.model(name)
    return Raw(body, 200, [("Content-Type", "application/json"), ("Content-Length", str(len(body))), *from_memory()])
