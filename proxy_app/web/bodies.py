"""Reading a request's body: whole, bounded in size, time and memory, or refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import IO, Any

import zstandard
from flask import g, request
from gunicorn.http.errors import ParseException

from proxy_app.domain import Buffer
from proxy_app.errors import BadRequest, BodyTooLarge, RequestTimeout
from proxy_app.upstream.body import Body, BodyMemory
from proxy_app.web.connection import close_after_answer

READ_BYTES = 65536
# What Ollama itself accepts of a compressed body (server/cloud_proxy.go:36, 81-92).
ZSTD_BYTES = 20 << 20
ZSTD_WINDOW = 8 << 20


def read_body(memory: BodyMemory) -> Body:
    """The whole body, or none of it; the caller closes it.

    Raises:
        BodyTooLarge: longer than its route allows, whether its length was announced or not.
        BadRequest: shorter than announced: the client left in the middle, and what it sent is no request.
        RequestTimeout: it stopped coming.
        Unavailable: there is no room for it now.
    """
    body = Body(memory)
    try:
        announced = announced_length(request.environ)
        body.read_from(pieces(request.environ, g.body_limit), announced)
    except BaseException:
        body.close()
        raise
    return body


def read_short_body() -> bytes:
    """The whole body of a route whose limit is small: it needs no room of its own. Raises: as `read_body`."""
    return b"".join(pieces(request.environ, g.body_limit))


def pieces(environ: Mapping[str, Any], limit: int | None) -> Iterator[bytes]:
    """A body's bytes as they come; after an error the rest of the connection is not read.

    Args:
        limit: in bytes; None for an upload, which is never held.

    Raises:
        As `read_body`.
    """
    try:
        yield from _pieces(environ, limit)
    except (BodyTooLarge, BadRequest, RequestTimeout):
        close_after_answer()
        raise


def has_body(environ: Mapping[str, Any]) -> bool:
    return bool(announced_length(environ)) or "HTTP_TRANSFER_ENCODING" in environ


def announced_length(environ: Mapping[str, Any]) -> int | None:
    """The length that a request says its body has; None where it comes in chunks, or there is none."""
    announced = environ.get("CONTENT_LENGTH") or ""
    return int(announced) if announced else None


def decoded(body: Buffer, encoding: str, memory: BodyMemory) -> Buffer:
    """A body as routing reads it; what goes to the backend stays as it was sent.

    Raises:
        BadRequest: it is no zstd, or its window is larger than Ollama takes.
        BodyTooLarge: it unpacks to more than Ollama takes.
        Unavailable: there is no memory for it now.
    """
    if encoding.strip().lower() != "zstd":
        return body
    held = min(ZSTD_BYTES, memory.limit)
    memory.take(held)
    try:
        reader = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).stream_reader(
            memoryview(body), read_across_frames=True
        )
        text = reader.read(ZSTD_BYTES + 1)
    except zstandard.ZstdError:
        raise BadRequest("the request body cannot be unpacked as zstd") from None
    finally:
        memory.give(held)
    if len(text) > ZSTD_BYTES:
        raise _too_large(ZSTD_BYTES)
    return bytes(text)


def _pieces(environ: Mapping[str, Any], limit: int | None) -> Iterator[bytes]:
    length = announced_length(environ)
    if length is not None and limit is not None and length > limit:
        raise _too_large(limit)
    if length is None and "chunked" not in environ.get("HTTP_TRANSFER_ENCODING", "").lower():
        return
    size = 0
    for piece in _read(environ["wsgi.input"]):
        size += len(piece)
        if limit is not None and size > limit:
            raise _too_large(limit)
        yield piece
    if length is not None and size != length:
        raise BadRequest("the request body is shorter than its Content-Length")
    g.body_read = True


def _read(stream: IO[bytes]) -> Iterator[bytes]:
    while True:
        try:
            piece = stream.read(READ_BYTES)
        except TimeoutError as exc:
            raise RequestTimeout("the request body stopped coming") from exc
        except (OSError, ParseException) as exc:
            raise BadRequest("the request body was cut off or is badly framed") from exc
        if not piece:
            return
        yield piece


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the request body is longer than {limit} bytes")
