"""The answer of a pull, a push or a create: lines of progress as they come, and one word at the end."""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterator
from itertools import chain

from proxy_app.dialects.endings import NDJSON
from proxy_app.dialects.progress import SUCCESS, Merge, Record, error_line
from proxy_app.domain import Backend
from proxy_app.errors import ClientGone, Stopping
from proxy_app.services.parts import Crew, Part
from proxy_app.services.relayed import STOPPING, Answer, Client
from proxy_app.services.store_trace import StoreTrace

JSON_PLAIN = "application/json"
Settle = Callable[[Collection[Backend]], None]


class Progress(Iterator[bytes]):
    """One operation under way.

    Of one backend the lines pass as they are; those of several become one stream. `close` is idempotent, ends what is
    still under way, and writes the log line.

    Args:
        settle: is told who has done it before the client is.
    """

    def __init__(self, crew: Crew, client: Client, trace: StoreTrace, settle: Settle) -> None:
        self._crew, self._client, self._trace, self._settle = crew, client, trace, settle
        is_alone = len(crew.parts) == 1 and not crew.order.missing
        self._merge = None if is_alone else Merge(part.name for part in crew.parts)
        self._last = b""
        self._is_over = self._is_closed = False
        self._coming: Iterator[bytes] = self._lines()
        trace.attempts += [part.name for part in crew.parts]

    def begin(self) -> Answer:
        """The answer of one who wants the stream, once there is something to say; whole where it fails before that."""
        first = next(self._coming, None)
        if first is None and self._crew.failed:
            return self._whole()
        self._coming = chain([first] if first else [], self._coming)
        self._trace.status, self._trace.outcome = 200, "client_gone"
        return Answer(200, "OK", [("Content-Type", NDJSON)], self, self.close)

    def run(self) -> Answer:
        """The answer of one who wants to hear of the end alone."""
        for _ in self._coming:
            # Nobody wants to see it.
            continue
        return self._whole()

    def __next__(self) -> bytes:
        if self._is_over:
            raise StopIteration
        try:
            line = next(self._coming, None)
            return self._end() if line is None else line
        except ClientGone:
            self._is_over = True
            raise BrokenPipeError(errno.EPIPE, "the client hung up") from None
        except Stopping:
            self._is_over, self._trace.outcome = True, "stopped"
            return error_line(STOPPING)

    def cancel(self) -> None:
        """End it without a word; whoever raised an error says it."""
        self._is_closed = True
        self._crew.cancel()

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._crew.cancel()
            self._trace.write()

    def _lines(self) -> Iterator[bytes]:
        for part, line, record in self._crew.lines(self._client):
            yield from self._merged(part, record) if self._merge else self._plain(line, record)

    def _plain(self, line: bytes, record: Record | None) -> Iterator[bytes]:
        """The only backend's own line; its last one is kept until all is settled."""
        if record is None:
            return
        if record.is_success or record.error is not None:
            self._last = line
        else:
            yield line

    def _merged(self, part: Part, record: Record | None) -> list[bytes]:
        assert self._merge is not None, "there is one backend"
        if record is None or record.is_success or record.error is not None:
            return self._merge.leave(part.name)
        return self._merge.note(part.name, record)

    def _end(self) -> bytes:
        """The last line, once everybody may know."""
        self._is_over = True
        self._settled()
        if self._last:
            return self._last
        return error_line(self._crew.message) if self._crew.failed else SUCCESS + b"\n"

    def _whole(self) -> Answer:
        """The answer of an operation that is over."""
        self._settled()
        if self._crew.failed:
            answer = self._crew.answer(JSON_PLAIN)
        else:
            answer = Answer(200, "OK", [("Content-Type", JSON_PLAIN), ("Content-Length", str(len(SUCCESS)))], SUCCESS)
        self._trace.status, answer.close = answer.status, self.close
        return answer

    def _settled(self) -> None:
        with self._client.watch():
            self._settle([part.backend for part in self._crew.done])
        self._trace.outcome = outcome(self._crew)
        self._trace.tell()


def outcome(crew: Crew) -> str:
    """One word for the log."""
    if not crew.failed:
        return "complete"
    return "partly" if crew.done else "failed"
