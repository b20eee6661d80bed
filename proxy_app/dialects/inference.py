"""The inference routes: their dialects, and the texts in which Ollama refuses on each of them.

Source: recorded answers of Ollama v0.33.0-rc2 (tests/golden).
"""

from __future__ import annotations

from dataclasses import dataclass

from proxy_app.dialects.errors import Dialect
from proxy_app.errors import BadRequest, CloudDisabled, ModelNotFound, RequestError


@dataclass(frozen=True, slots=True)
class InferenceRoute:
    """One inference route of Ollama.

    Args:
        path: as the client and the backend know it.
        missing: what a request without a model gets.
        not_found: the text for an unknown model, with `{}` for the name as it was sent.
        empty_body: the text for a request without a body.
        needs_multipart: the body has to be a form with a file.
    """

    path: str
    dialect: Dialect
    missing: RequestError
    not_found: str = "model '{}' not found"
    empty_body: str = "missing request body"
    needs_multipart: bool = False

    def unknown(self, model: str) -> ModelNotFound:
        return ModelNotFound(self.not_found.format(model))


_REQUIRED = BadRequest("model is required")
_UNNAMED = ModelNotFound("model '' not found")
_PULL = 'model "{}" not found, try pulling it first'

ROUTES = (
    InferenceRoute("/api/generate", "ollama", _UNNAMED),
    InferenceRoute("/api/chat", "ollama", _REQUIRED),
    InferenceRoute("/api/embed", "ollama", _UNNAMED, _PULL),
    InferenceRoute("/api/embeddings", "ollama", _REQUIRED, _PULL),
    InferenceRoute("/v1/chat/completions", "openai", _REQUIRED, empty_body="EOF"),
    InferenceRoute("/v1/completions", "openai", _UNNAMED, empty_body="EOF"),
    InferenceRoute("/v1/embeddings", "openai", _UNNAMED, _PULL, empty_body="EOF"),
    InferenceRoute("/v1/responses", "responses", _REQUIRED, empty_body="EOF"),
    InferenceRoute("/v1/audio/transcriptions", "openai", _REQUIRED, empty_body="EOF", needs_multipart=True),
    InferenceRoute("/v1/messages", "anthropic", _REQUIRED, empty_body="EOF"),
)

CLOUD_DISABLED = CloudDisabled("ollama cloud is disabled: remote model is unavailable")
