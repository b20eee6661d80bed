"""Listings and other metadata, answered from the Fleet: no request here ever waits for a backend."""

from __future__ import annotations

from flask import g, request

from proxy_app.dialects import ollama
from proxy_app.web.respond import Raw, from_memory, json_answer, listing_answer, runtime, text_answer


def running() -> Raw:
    return text_answer(ollama.RUNNING)


def version() -> Raw:
    return json_answer(ollama.version(runtime().reloader.fleet.version), headers=from_memory())


def tags() -> Raw:
    services = runtime()
    return listing_answer(services.views.tags(services.reloader.fleet, g.caller), request)


def loaded() -> Raw:
    services = runtime()
    return json_answer(services.views.loaded(services.reloader.fleet, g.caller), headers=from_memory())


def status() -> Raw:
    return json_answer(runtime().reloader.fleet.status, headers=from_memory())


def recommendations() -> Raw:
    return json_answer(runtime().reloader.fleet.recommendations, headers=from_memory())
