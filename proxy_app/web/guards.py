"""What every request passes first: its id, whose Host and Origin it carries, and a body that is whole.

Source of the Host and Origin rules: Ollama server/routes.go:1776-1867 and envconfig/config.go:86-109 (v0.33.0-rc2),
measured.
"""

from __future__ import annotations

import ipaddress
import random
import re
import socket
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import IO, Any

from gunicorn.http.errors import ParseException

from proxy_app.errors import BadRequest, BodyTooLarge, RequestTimeout
from proxy_app.web.connection import close_after_answer

READ_BYTES = 65536
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")
_LOCAL_ORIGINS = tuple(
    f"{scheme}://{host}{port}"
    for scheme in ("http", "https")
    for host in ("localhost", "127.0.0.1", "0.0.0.0")
    for port in ("", ":*")
)
_APP_ORIGINS = ("app://*", "file://*", "tauri://*", "vscode-webview://*", "vscode-file://*")

PREFLIGHT_HEADERS = (
    ("Access-Control-Allow-Methods", "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"),
    (
        "Access-Control-Allow-Headers",
        "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,X-Stainless-Lang,"
        "X-Stainless-Package-Version,X-Stainless-Os,X-Stainless-Arch,X-Stainless-Retry-Count,X-Stainless-Runtime,"
        "X-Stainless-Runtime-Version,X-Stainless-Async,X-Stainless-Helper-Method,X-Stainless-Poll-Helper,"
        "X-Stainless-Custom-Poll-Interval,X-Stainless-Timeout",
    ),
    ("Access-Control-Max-Age", "43200"),
)


def request_id(given: str) -> str:
    """The client's own id where it is harmless, else a new one."""
    return given if _REQUEST_ID.fullmatch(given) else "%032x" % random.getrandbits(128)


def host_guard(extra: tuple[str, ...]) -> Callable[[str], bool]:
    """A check of the Host header for a loopback listener, against DNS rebinding.

    Args:
        extra: more names; `.example.com` allows all below it, `*` everything.
    """
    own = socket.gethostname().lower()

    @lru_cache(maxsize=1024)
    def allows(header: str) -> bool:
        host = _without_port(header).lower()
        if host in ("", "localhost", own) or host.endswith(_LOCAL_SUFFIXES) or "*" in extra:
            return True
        if any(host == name or (name.startswith(".") and host.endswith(name)) for name in extra):
            return True
        return _is_own_address(host)

    return allows


def origin_guard(extra: tuple[str, ...]) -> Callable[[str, str], bool]:
    """A check of (Origin, Host): may this page call?"""
    patterns = (*extra, *_LOCAL_ORIGINS, *_APP_ORIGINS)

    @lru_cache(maxsize=1024)
    def allows(origin: str, host: str) -> bool:
        if origin in (f"http://{host}", f"https://{host}"):
            return True
        return any(fnmatchcase(origin.lower(), pattern.lower()) for pattern in patterns)

    return allows


def read_body(environ: Mapping[str, Any], limit: int) -> bytes:
    """The whole body, or none of it.

    Raises:
        BodyTooLarge: longer than `limit` bytes, whether its length was announced or not.
        BadRequest: shorter than announced: the client left in the middle, and what it sent is no request.
    """
    try:
        return _read_body(environ, limit)
    except (BodyTooLarge, BadRequest, RequestTimeout):
        close_after_answer()
        raise


def _read_body(environ: Mapping[str, Any], limit: int) -> bytes:
    announced = environ.get("CONTENT_LENGTH") or ""
    length = int(announced) if announced else None
    if length is not None and length > limit:
        raise _too_large(limit)
    if length is None and "chunked" not in environ.get("HTTP_TRANSFER_ENCODING", "").lower():
        return b""
    body = _read(environ["wsgi.input"], limit)
    if length is not None and len(body) != length:
        raise BadRequest("the request body is shorter than its Content-Length")
    return body


def _read(stream: IO[bytes], limit: int) -> bytes:
    pieces, size = [], 0
    try:
        while piece := stream.read(READ_BYTES):
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise _too_large(limit)
    except TimeoutError as exc:
        raise RequestTimeout("the request body stopped coming") from exc
    except (OSError, ParseException) as exc:
        raise BadRequest("the request body was cut off or is badly framed") from exc
    return b"".join(pieces)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the request body is longer than {limit} bytes")


def _without_port(header: str) -> str:
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if header.count(":") == 1 else header


def _is_own_address(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_private or address.is_unspecified
