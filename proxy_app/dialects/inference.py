"""The inference routes: their dialects, and the texts in which Ollama refuses on each of them.

Source: recorded answers of Ollama v0.33.0-rc2 (tests/golden).
"""

from __future__ import annotations

from dataclasses import dataclass

from proxy_app.dialects.errors import Dialect
from proxy_app.errors import BadRequest, CloudDisabled, ModelNotFound, RequestError

_NOT_FOUND = "model '{}' not found"


@dataclass(frozen=True, slots=True)
class InferenceRoute:
    """One inference route of Ollama.

    Args:
        path: as the client and the backend know it.
        missing: what a request without a model gets.
        not_found: the text for an unknown model, with `{}` for the name as it was sent.
        empty_body: the text for a request without a body.
        needs_multipart: the body has to be a form with a file.
        takes_zstd: may the body be compressed with zstd (cloud_proxy.go:81-92)?
        streams: does a request that does not say stream?
        no_cloud: for a route that only Ollama's cloud serves and that names no model: what is said where it is
            switched off.
    """

    path: str
    dialect: Dialect
    missing: RequestError
    not_found: str = _NOT_FOUND
    empty_body: str = "missing request body"
    needs_multipart: bool = False
    takes_zstd: bool = False
    streams: bool = False
    no_cloud: CloudDisabled | None = None

    @property
    def answers_at_length(self) -> bool:
        """Is there an answer whose length a request may ask for?"""
        return "embed" not in self.path and self.no_cloud is None

    def unknown(self, model: str) -> ModelNotFound:
        return ModelNotFound(self.not_found.format(model))


_REQUIRED = BadRequest("model is required")
_UNNAMED = ModelNotFound("model '' not found")
_PULL = 'model "{}" not found, try pulling it first'

CLOUD_DISABLED = CloudDisabled("ollama cloud is disabled: remote model is unavailable")
_NO_SEARCH = CloudDisabled("ollama cloud is disabled: web search is unavailable")
_NO_FETCH = CloudDisabled("ollama cloud is disabled: web fetch is unavailable")


def _openai(path: str, missing: RequestError, not_found: str = _NOT_FOUND) -> InferenceRoute:
    return InferenceRoute(path, "openai", missing, not_found, empty_body="EOF", takes_zstd=True)


ROUTES = (
    InferenceRoute("/api/generate", "ollama", _UNNAMED, streams=True),
    InferenceRoute("/api/chat", "ollama", _REQUIRED, streams=True),
    InferenceRoute("/api/embed", "ollama", _UNNAMED, _PULL),
    InferenceRoute("/api/embeddings", "ollama", _REQUIRED, _PULL),
    InferenceRoute("/api/experimental/web_search", "ollama", _REQUIRED, no_cloud=_NO_SEARCH),
    InferenceRoute("/api/experimental/web_fetch", "ollama", _REQUIRED, no_cloud=_NO_FETCH),
    _openai("/v1/chat/completions", _REQUIRED),
    _openai("/v1/completions", _UNNAMED),
    _openai("/v1/embeddings", _UNNAMED, _PULL),
    InferenceRoute("/v1/responses", "responses", _REQUIRED, empty_body="EOF", takes_zstd=True),
    InferenceRoute("/v1/audio/transcriptions", "openai", _REQUIRED, empty_body="EOF", needs_multipart=True),
    InferenceRoute("/v1/messages", "anthropic", _REQUIRED, empty_body="EOF", takes_zstd=True),
)
