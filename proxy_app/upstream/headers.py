"""Which headers pass, in both directions.

Source: RFC 9110 §7.6.1 (hop-by-hop), §7.6.3 (Via); Caddy's and Ollama's own hop-by-hop lists agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from proxy_app.domain import Backend

Pairs = list[tuple[str, str]]

HOP_BY_HOP = frozenset(
    {
        "alt-svc",
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# Never sent on: what is Caravan's own to say, what the client's browser says to Caravan, and every credential of the
# client.
_NOT_UPSTREAM = HOP_BY_HOP | {
    "api-key",
    "authorization",
    "content-length",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "origin",
    "referer",
    "via",
    "x-api-key",
    "x-goog-api-key",
    "x-real-ip",
    "x-request-id",
}
# gunicorn writes its own; a backend's cookie is nobody's business but its own.
_NOT_DOWNSTREAM = HOP_BY_HOP | {"content-length", "date", "server", "set-cookie", "x-request-id"}

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asked, and on which way: what Caravan itself says of a request.

    Args:
        request_id: the same in every log.
        via: our own entry of `Via`.
        address: the client's, as far as the proxies in front can be believed.
        scheme: how the client reached the first of them.
    """

    request_id: str = ""
    via: str = ""
    address: str = ""
    scheme: str = ""

    def headers(self, came_via: str) -> dict[str, str]:
        said = {
            "Via": ", ".join(filter(None, (came_via, self.via))),
            "X-Request-Id": self.request_id,
            "X-Forwarded-For": self.address,
            "X-Forwarded-Proto": self.scheme,
        }
        return {name: value for name, value in said.items() if value}


NOBODY = Origin()
"""Of what Caravan asks for itself."""


def to_upstream(headers: Iterable[tuple[str, str]], backend: Backend, origin: Origin) -> dict[str, str]:
    """The headers of a request as a backend gets them."""
    pairs = list(headers)
    dropped = _NOT_UPSTREAM | _named_by_connection(pairs)
    came_via = ", ".join(value for name, value in pairs if name.lower() == "via")
    own = origin.headers(came_via) | own_headers(backend)
    dropped |= {name.lower() for name in own}
    kept = {name: value for name, value in pairs if name.lower() not in dropped}
    # Whatever was forwarded to us, we say ourselves how the request came.
    return {name: value for name, value in kept.items() if not name.lower().startswith("x-forwarded-")} | own


def own_headers(backend: Backend) -> dict[str, str]:
    """What Caravan's own settings say to a backend."""
    headers = dict(backend.headers)
    if backend.auth_token:
        headers["Authorization"] = f"Bearer {backend.auth_token}"
    return headers


def to_client(headers: Iterable[tuple[str, str]]) -> Pairs:
    """The headers of an answer as the client gets them, without those that say how long its body is.

    What is no header by RFC 9110 §5 is left out: the server would refuse the whole answer for it.
    """
    pairs = list(headers)
    dropped = _NOT_DOWNSTREAM | _named_by_connection(pairs)
    return [(name, value) for name, value in pairs if name.lower() not in dropped and _is_header(name, value)]


def _is_header(name: str, value: str) -> bool:
    return bool(_NAME.fullmatch(name) and _VALUE.fullmatch(value))


def clean_reason(reason: str) -> str:
    """A status line's phrase, or nothing where it is none."""
    return reason if _VALUE.fullmatch(reason) else ""


def _named_by_connection(headers: Pairs) -> frozenset[str]:
    named = (value for name, value in headers if name.lower() == "connection")
    return frozenset(token.strip().lower() for value in named for token in value.split(","))
