"""Listings and other metadata, answered from the Fleet: no request here ever waits for a backend."""

from __future__ import annotations

from flask import Blueprint, request

from proxy_app.dialects import ollama
from proxy_app.web.respond import Raw, from_memory, json_answer, listing_answer, runtime, text_answer

blueprint = Blueprint("tags", __name__)


@blueprint.get("/")
def running() -> Raw:
    return text_answer(ollama.RUNNING)


@blueprint.get("/api/version")
def version() -> Raw:
    return json_answer(ollama.version(runtime().reloader.fleet.version), headers=from_memory())


@blueprint.get("/api/tags")
def tags() -> Raw:
    return listing_answer(runtime().reloader.fleet.tags, request)


@blueprint.get("/api/ps")
def loaded() -> Raw:
    return json_answer(runtime().reloader.fleet.loaded, headers=from_memory())
