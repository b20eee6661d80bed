"""Ollama's own inference routes."""

from __future__ import annotations

from flask import Blueprint

from proxy_app.web.relayed import relayed

blueprint = Blueprint("chat", __name__)

for path in ("/api/chat", "/api/generate", "/api/embed", "/api/embeddings"):
    blueprint.add_url_rule(path, view_func=relayed(path), methods=["POST"])
