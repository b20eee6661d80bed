"""The route of Anthropic's clients."""

from __future__ import annotations

from flask import Blueprint

from proxy_app.web.relayed import relayed

blueprint = Blueprint("anthropic", __name__)

blueprint.add_url_rule("/v1/messages", view_func=relayed("/v1/messages"), methods=["POST"])
