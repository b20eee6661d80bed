"""One store operation on several backends at once: each does its part, and what came of it is told in one answer."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus

from proxy_app.dialects.errors import JSON, compact, message_of
from proxy_app.dialects.progress import Lines, Record, read_record, verdict
from proxy_app.domain import Backend
from proxy_app.errors import BadAnswer, Truncated, Unreachable, UpstreamError, UpstreamTimeout
from proxy_app.services.relayed import Answer, Client, with_length
from proxy_app.upstream.aside import Aside
from proxy_app.upstream.client import Call, Limits, UpstreamClient
from proxy_app.upstream.stream import Upstream

log = logging.getLogger(__name__)

# Enough of a whole answer: Ollama's are empty, or one sentence.
ANSWER_BYTES = 1 << 20
# Pieces of an upload that wait for a slow backend while the others have theirs.
WAITING_PIECES = 4


@dataclass(eq=False, slots=True)
class Part:
    """One backend's part of an operation.

    Args:
        answer: what it said, where that was a whole answer.
        error: why it failed, in words for a client; None while it has not.
        is_quoted: are those words the backend's own?
        done: did it do all that was asked?
        reached: was there a connection?
    """

    backend: Backend
    answer: Answer | None = None
    error: str | None = None
    is_quoted: bool = False
    done: bool = False
    reached: bool = True

    @property
    def name(self) -> str:
        return self.backend.name

    def fail(self, exc: UpstreamError) -> None:
        """It broke off; what it had done by then is done."""
        log.info("a store operation: %s", exc)
        if not self.done:
            self.error, self.reached = _in_words(exc), not isinstance(exc, Unreachable)

    def note(self, record: Record) -> None:
        self.done, self.error, self.is_quoted = record.is_success, record.error, record.error is not None

    def take(self, upstream: Upstream, method: str) -> None:
        """Read a whole answer. Raises: Truncated."""
        # What an answer to HEAD announces never comes.
        body = b"" if method == "HEAD" else upstream.read_up_to(ANSWER_BYTES)
        if upstream.status in (401, 403) or 300 <= upstream.status < 400:
            # It refuses Caravan, not the client, who could do nothing about it.
            self.error = f"it refuses Caravan with {upstream.status}: check its token and URL"
            return
        self.answer = Answer(upstream.status, upstream.reason, with_length(upstream.headers, body), body)
        self.done = upstream.status < 300
        self.error, self.is_quoted = None if self.done else message_of(body), True


@dataclass(frozen=True, slots=True)
class Order:
    """What several backends are told to do.

    Args:
        verb: what error texts call it.
        missing: backends that it should reach and cannot, with the reason.
    """

    verb: str
    call: Call
    backends: Sequence[Backend]
    missing: Sequence[tuple[str, str]] = ()


class Crew:
    """The parts of one order. Owned by: its request; `cancel` ends all of them and closes their connections."""

    def __init__(self, order: Order, client: UpstreamClient, limits: Limits) -> None:
        self.order, self._client, self._limits = order, client, limits
        self.parts = [Part(backend) for backend in order.backends]
        self._asides: list[Aside[None]] = []

    @property
    def failed(self) -> list[tuple[str, str]]:
        return [(part.name, part.error) for part in self.parts if part.error is not None] + list(self.order.missing)

    @property
    def done(self) -> list[Part]:
        return [part for part in self.parts if part.done]

    @property
    def message(self) -> str:
        """Why it failed: where all say the same, in their words; else what failed where, and who has done it."""
        said = {part.error for part in self.parts if part.is_quoted and not part.done}
        if len(said) == 1 and not self.order.missing and all(part.is_quoted and not part.done for part in self.parts):
            return str(said.pop())
        return verdict(self.order.verb, self.failed, [part.name for part in self.done])

    def send_all(self, client: Client) -> None:
        """Send the order to everybody at once and wait for all answers.

        Raises:
            ClientGone: the client hung up; nobody goes on.
        """
        with self._ended_together(), client.watch():
            for part in self.parts:
                self._begin(partial(self._ask, part))
            for aside in self._asides:
                aside.wait()
                aside.result()

    def upload(self, pieces: Iterator[bytes], client: Client) -> bool:
        """Send everybody the same body, piece by piece.

        Returns:
            Was the body read to its end? It is not where everybody had answered before that.

        Raises:
            RequestError: the body broke off; nobody takes what came for all of it.
            ClientGone: the client hung up.
        """
        with self._ended_together():
            feeds = [_Feed() for _ in self.parts]
            for part, feed in zip(self.parts, feeds, strict=True):
                self._begin(partial(self._send_fed, part, feed))
            was_read = _distribute(pieces, feeds)
            with client.watch():
                for aside in self._asides:
                    aside.wait()
                    aside.result()
            return was_read

    def lines(self, client: Client) -> Iterator[tuple[Part, bytes, Record | None]]:
        """Send the order to everybody; what they say, line by line as it comes. None: this part is over.

        Raises:
            ClientGone: the client hung up.
        """
        said: queue.SimpleQueue[tuple[Part, bytes, Record | None]] = queue.SimpleQueue()
        for part in self.parts:
            self._begin(partial(self._follow, part, said.put))
        left = len(self.parts)
        while left:
            with client.watch():
                event = said.get()
            left -= event[2] is None
            yield event
        for aside in self._asides:
            aside.wait()
            aside.result()

    def forgive_missing(self) -> None:
        """What is not there any more on some backends was changed all the same, if it was on another one."""
        if self.done:
            for part in self.parts:
                if part.answer is not None and part.answer.status == 404:
                    part.answer, part.done, part.error = None, True, None

    def cancel(self) -> None:
        for aside in self._asides:
            aside.cancel()

    def answer(self, error_type: str = JSON) -> Answer:
        """What the client gets of whole answers: one that all agree on as it is, else what failed where.

        Args:
            error_type: the content type of the latter.
        """
        failed = self.failed
        if not failed:
            # Of uploads, 201 where somebody did not have it yet.
            return max((part.answer for part in self.parts if part.answer), key=lambda answer: answer.status)
        return self._agreed() or error_answer(500, self.message, error_type)

    def _agreed(self) -> Answer | None:
        """The same error from everybody is the client's own mistake: it is passed on."""
        answers = [part.answer for part in self.parts if part.answer and not part.done]
        if len(answers) < len(self.parts) or self.order.missing:
            return None
        said = {(answer.status, part.error) for answer, part in zip(answers, self.parts, strict=True)}
        return answers[0] if len(said) == 1 else None

    def _begin(self, work: Callable[[], None]) -> None:
        self._asides.append(Aside(work))

    @contextmanager
    def _ended_together(self) -> Iterator[None]:
        try:
            yield
        finally:
            self.cancel()

    def _ask(self, part: Part) -> None:
        try:
            with self._sent(part, self.order.call) as upstream:
                part.take(upstream, self.order.call.method)
        except UpstreamError as exc:
            part.fail(exc)

    def _send_fed(self, part: Part, feed: _Feed) -> None:
        try:
            with self._sent(part, replace(self.order.call, body=feed.pieces())) as upstream:
                part.take(upstream, "POST")
        except UpstreamError as exc:
            part.fail(exc)
        finally:
            feed.end()

    def _follow(self, part: Part, say: Callable[[tuple[Part, bytes, Record | None]], None]) -> None:
        try:
            with self._sent(part, self.order.call) as upstream:
                if upstream.status >= 300:
                    part.take(upstream, "POST")
                else:
                    self._read(part, upstream, say)
        except UpstreamError as exc:
            part.fail(exc)
        finally:
            say((part, b"", None))

    def _read(self, part: Part, upstream: Upstream, say: Callable[[tuple[Part, bytes, Record | None]], None]) -> None:
        for line in _lines_of(upstream):
            record = read_record(line)
            part.note(record)
            say((part, line, record))
            if record.error is not None:
                return
        if not part.done:
            raise Truncated(f"{part.name}: the progress ended without its end mark")

    @contextmanager
    def _sent(self, part: Part, call: Call) -> Iterator[Upstream]:
        upstream = self._client.send(part.backend, call, self._limits)
        try:
            yield upstream
        finally:
            upstream.close()


class _Feed:
    """The pieces of an upload on their way to one backend; a few of them may wait for it."""

    def __init__(self) -> None:
        self._queue: queue.Queue[bytes] = queue.Queue(WAITING_PIECES)
        self.is_over = False

    def put(self, piece: bytes) -> None:
        """Hand on a piece, or b"" at the end; waits while too many of them wait."""
        if not self.is_over:
            self._queue.put(piece)

    def pieces(self) -> Iterator[bytes]:
        while piece := self._queue.get():
            yield piece

    def end(self) -> None:
        """The backend takes no more; whoever waits to hand on a piece goes on."""
        self.is_over = True
        while not self._queue.empty():
            self._queue.get_nowait()


def error_answer(status: int, message: str, content_type: str = JSON) -> Answer:
    body = compact({"error": message})
    headers = [("Content-Type", content_type), ("Content-Length", str(len(body)))]
    return Answer(status, HTTPStatus(status).phrase, headers, body)


def _distribute(pieces: Iterator[bytes], feeds: Sequence[_Feed]) -> bool:
    for piece in pieces:
        for feed in feeds:
            feed.put(piece)
        if all(feed.is_over for feed in feeds):
            return False
    for feed in feeds:
        feed.put(b"")
    return True


def _lines_of(upstream: Upstream) -> Iterator[bytes]:
    lines = Lines()
    while piece := upstream.read():
        yield from lines.feed(piece)
    yield from lines.end()


def _in_words(exc: UpstreamError) -> str:
    """What may be said of a failure: no address, and what to think of it."""
    if isinstance(exc, Unreachable):
        return "it cannot be reached"
    if isinstance(exc, UpstreamTimeout) or isinstance(exc.__cause__, TimeoutError):
        return "it was silent for longer than CARAVAN_STORE_TIMEOUT"
    return "it gave an answer that is none" if isinstance(exc, BadAnswer) else "the connection was lost"
