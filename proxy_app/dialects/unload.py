"""Requests that only end a model's stay in memory, as `ollama stop` sends them."""

from __future__ import annotations

import msgspec

from proxy_app.dialects.body import members_of
from proxy_app.dialects.bounds import seconds
from proxy_app.dialects.gojson import fold
from proxy_app.domain import Buffer
from proxy_app.errors import BadRequest

_QUESTION = {"/api/generate": "prompt", "/api/chat": "messages"}
# Far more than such a request has.
_LONGEST = 4 << 10


def is_unload(body: Buffer, path: str) -> bool:
    """Does a request ask nothing, and for a `keep_alive` of less than a second?

    Source: Ollama server/routes.go, GenerateHandler and ChatHandler (v0.33.0-rc2).
    """
    if path not in _QUESTION or len(body) > _LONGEST or b"keep_alive" not in body[:]:
        return False
    try:
        fields = {fold(key): msgspec.json.decode(value) for key, value in members_of(body).items()}
    except (BadRequest, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    stay_s = seconds(fields.get("keep_alive"))
    return not fields.get(_QUESTION[path]) and stay_s is not None and int(stay_s) == 0
