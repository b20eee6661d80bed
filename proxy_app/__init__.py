"""Caravan: one address for a whole fleet of Ollama servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Flask

    from proxy_app.settings import Settings

__version__ = "0.1.0"


def create_app(settings: Settings | None = None) -> Flask:
    """Build the WSGI application; see `proxy_app.web.app.build`."""
    # Imported here so that the refresher and the CLI never load Flask.
    from proxy_app.web.app import build

    return build(settings)
