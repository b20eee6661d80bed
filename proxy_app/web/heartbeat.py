"""Answers that begin before a backend's does: for routers that cut a connection on which nothing moves.

Heroku's gives a request 30 s to its first byte and 55 s between two (H12, H15); a large model takes longer to load.
The price is the status: it has gone out, so an error that comes later stands inside a 200.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field

from proxy_app.dialects.endings import NDJSON, SSE, heartbeat
from proxy_app.dialects.errors import JSON, Dialect, error_record, message_of
from proxy_app.dialects.inference import InferenceRoute
from proxy_app.errors import ClientGone, RequestError, Stopping, Unavailable
from proxy_app.services.relayed import STOPPING, Answer
from proxy_app.upstream.aside import Aside


@dataclass(frozen=True, slots=True)
class Beat:
    """What is sent while nothing comes, as the type that the answer will have."""

    dialect: Dialect
    content_type: str

    @property
    def piece(self) -> bytes:
        return heartbeat(self.content_type)


def beat_of(route: InferenceRoute, stream: bool | None) -> Beat:
    """The heartbeat of a request, by what it asked for."""
    if not (route.streams if stream is None else stream):
        return Beat(route.dialect, JSON)
    return Beat(route.dialect, NDJSON if route.dialect == "ollama" else SSE)


def beating(search: Aside[Answer], beat: Beat, every_s: float) -> Answer:
    """The answer of a search; where that takes longer, one that begins with heartbeats.

    Raises:
        RequestError, ClientGone: those of the search, while nothing has gone out.
    """
    try:
        if search.wait(every_s):
            return search.result()
    except BaseException:
        _end(search)
        raise
    body = _Body(search, beat, every_s)
    return Answer(200, "OK", [("Content-Type", beat.content_type)], body, body.close)


def _end(search: Aside[Answer]) -> None:
    search.cancel()
    if search.value is not None:
        search.value.close()


@dataclass(slots=True)
class _Body(Iterator[bytes]):
    search: Aside[Answer]
    beat: Beat
    every_s: float
    rest: Iterator[bytes] | None = None
    beaten: bool = field(default=False)

    def __next__(self) -> bytes:
        if not self.beaten:
            self.beaten = True
            return self.beat.piece
        if self.rest is None:
            try:
                if not self.search.wait(self.every_s):
                    return self.beat.piece
            except Stopping:
                self.search.cancel()
                self.rest = iter([self._error(Unavailable.status, STOPPING)])
                return next(self.rest)
            self.rest = iter(self._found())
        return next(self.rest)

    def close(self) -> None:
        _end(self.search)

    def _found(self) -> Iterator[bytes]:
        """The rest of the answer; an error in the form that the stream has room for."""
        try:
            answer = self.search.result()
        except RequestError as error:
            return iter([self._error(error.status, error.message)])
        except ClientGone:
            raise BrokenPipeError(errno.EPIPE, "the client hung up") from None
        if any(name.lower() == "content-encoding" for name, _ in answer.headers):
            # The head has gone out, and says nothing of that.
            answer.close()
            return iter(
                [self._error(502, "the backend's answer is compressed, and a heartbeat has gone out before it")]
            )
        if not isinstance(answer.body, bytes):
            return answer.body
        return iter([answer.body if answer.status < 300 else self._error(answer.status, message_of(answer.body))])

    def _error(self, status: int, message: str) -> bytes:
        record = error_record(self.beat.dialect, self.beat.content_type, message, b"\n\n")
        if record is None:
            # Of one JSON value only blanks have gone out: an error there would pass for the answer.
            raise BrokenPipeError(errno.EPIPE, f"{status}: {message}")
        return record
