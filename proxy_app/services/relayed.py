"""One request on its way back to the client: its log line, its answer, and a body that streams."""

from __future__ import annotations

import errno
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Protocol

from proxy_app.dialects.endings import is_ended, is_stream, record_end
from proxy_app.dialects.errors import Dialect, error_record
from proxy_app.dialects.usage import Spent, spent, token_mark
from proxy_app.errors import Cancelling, ClientGone, Interrupted, RequestError, Silent, Stopping, Truncated
from proxy_app.store.leases import Lease
from proxy_app.upstream.aside import Interruptible
from proxy_app.upstream.headers import to_client
from proxy_app.upstream.records import LastRecord
from proxy_app.upstream.stream import Upstream

log = logging.getLogger(__name__)
access = logging.getLogger("caravan.access")

STOPPING = Stopping.told
# A valid name is shorter; the rest of an invalid one is nobody's interest.
LOGGED_NAME = 300
# How an answer ended that had begun well: its status says nothing of that.
_BROKEN = (Truncated.code, Silent.code, Stopping.outcome)


class Client(Protocol):
    """The client's side of one request, as the web layer provides it."""

    def watch(self) -> AbstractContextManager[None]:
        """While inside, a hang-up raises `ClientGone` in the middle of whatever is waited for."""

    @property
    def chunked_socket(self) -> socket.socket | None:
        """The client's socket, where the answer goes out in chunks and may be written directly."""

    def abort(self) -> None:
        """Let the connection end in a reset."""


@dataclass(slots=True)
class Trace:
    """What happened to one request: the fields of its log line. Times in seconds.

    `is_listed`: the model is one that backends list, not just a name that somebody wrote. `reasons`: why the attempts
    failed, in their order; the last attempt has none while nothing is wrong with it.
    """

    request_id: str
    route: str
    model: str = ""
    key_id: str = ""
    status: int = 0
    outcome: str = "refused"
    attempts: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    first_byte_s: float | None = None
    is_listed: bool = False
    reasons: list[str] = field(default_factory=list)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    @property
    def is_fault(self) -> bool:
        """Did the fleet fail it?"""
        return is_fault(self.status, self.outcome)

    @property
    def named(self) -> str:
        """The model's name as stores and pages take it: a client may write half a character (a lone surrogate)."""
        return self.model[:LOGGED_NAME].encode("utf-8", "replace").decode()

    def fail(self, exc: RequestError | ClientGone) -> None:
        """Write the log line of a request that ends in an error of our own, or with its client."""
        if isinstance(exc, RequestError):
            self.status, self.outcome = exc.status, exc.code
        else:
            self.status, self.outcome = 499, "client_gone"
        self.write()

    def write(self) -> None:
        if not access.isEnabledFor(logging.INFO):
            return
        first = self.first_byte_s
        fields = {
            "request_id": self.request_id,
            "route": self.route,
            "model": self.model[:LOGGED_NAME],
            "key": self.key_id,
            "status": self.status,
            "outcome": self.outcome,
            "attempts": self.attempts,
            "first_byte_s": None if first is None else round(first, 4),
            "total_s": round(self.elapsed_s, 4),
        }
        access.info("relayed", extra={"fields": fields})


@dataclass(slots=True)
class Answer:
    """What goes to the client: a head, and a body that is whole or streams. `close` gives everything back."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: Iterator[bytes] | bytes = b""
    close: Callable[[], None] = lambda: None


@dataclass(slots=True)
class RelayBody(Iterator[bytes]):
    """The body of an answer that streams: its probed first piece, then the rest as it comes.

    `close` is idempotent and gives back the lease and the connection; the server calls it whatever happens.

    Args:
        succeeded, failed: one of them is called, where the answer ends well or the backend breaks off.
        bill: is told at the end what the answer cost.
        change: what is done to each piece before it goes out.
        waiting: lets others end it.
    """

    dialect: Dialect
    trace: Trace
    lease: Lease
    upstream: Upstream
    first: bytes
    client: Client
    succeeded: Callable[[], None]
    failed: Callable[[], None]
    bill: Callable[[Spent], None] = lambda _: None
    change: Callable[[bytes], bytes] | None = None
    waiting: Interruptible = field(default_factory=Interruptible)
    ended: bool = False
    closed: bool = False
    is_settled: bool = False
    record: LastRecord = field(init=False)
    kind: str = field(init=False)

    def __post_init__(self) -> None:
        self.kind = self.upstream.readable_type
        self.record = LastRecord(record_end(self.kind), token_mark(self.kind, self.trace.route))
        self.record.note(self.first)
        # Until the end is seen: whoever is not there any more did not get it.
        self.trace.outcome = "client_gone"

    def __next__(self) -> bytes:
        if self.first:
            first, self.first = self.first, b""
            return self.change(first) if self.change is not None else first
        if self.ended:
            raise StopIteration
        try:
            with self.waiting.exposed():
                piece = self._move()
            return piece or self._finish()
        except Truncated as exc:
            log.warning("%s: cut by %s: %s", self.trace.request_id, self.trace.attempts[-1], exc)
            self.failed()
            return self._broken(exc.code, exc.told)
        except Interrupted as exc:
            return self._broken(exc.outcome, exc.told, cuts_a_piece=exc.cuts_a_piece)
        except ClientGone:
            raise _hang_up("the client hung up") from None

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        try:
            self.free()
            self.trace.write()
        finally:
            self._settle()

    def free(self) -> None:
        """Let the backend go. Idempotent."""
        self.lease.release()
        self.upstream.close()

    @property
    def is_sized(self) -> bool:
        """Was its length announced? A stream's never is: an error record may have to follow."""
        return self.upstream.length is not None and not is_stream(self.kind)

    def _move(self) -> bytes:
        """The next piece; b"" when the rest went straight from socket to socket, or there is none."""
        sink = None if self.is_sized else self.client.chunked_socket
        if sink is None or not self.upstream.can_pump(sink):
            return self._read()
        self.upstream.pump(sink, self.record, self.change)
        return b""

    def _read(self) -> bytes:
        while True:
            with self.client.watch():
                piece = self.upstream.read()
            self.record.note(piece)
            changed = self.change(piece) if self.change is not None else piece
            if changed or not piece:
                return changed

    def _settle(self) -> None:
        if not self.is_settled:
            self.is_settled = True
            self.bill(self._spent())

    def _spent(self) -> Spent:
        """What the answer cost; of one that was not finished, what the client may have got of it."""
        said = spent(self.kind, self.record.last_two) if self.trace.outcome == "complete" else None
        found = said or Spent(tokens_out=self.record.tokens, is_exact=False)
        if found.gpu_ms:
            return found
        first_s = self.trace.first_byte_s or 0.0
        out_ms = int((self.trace.elapsed_s - first_s) * 1000)
        return replace(found, gpu_ms=out_ms, out_ms=out_ms, is_exact=False)

    def _finish(self) -> bytes:
        """The body has ended; where a stream's last record does not say so, it was cut all the same."""
        if not is_ended(self.kind, self.record.seen, is_open=self.record.is_open):
            raise Truncated("the answer ended without its end mark")
        self._end("complete")
        self.succeeded()
        # Before the last byte is out: whoever has it may come again at once.
        self._settle()
        raise StopIteration

    def _broken(self, outcome: str, message: str, *, cuts_a_piece: bool = False) -> bytes:
        """Say in the stream that it broke; where its framing has no room for that, break the connection."""
        self._end(outcome)
        # The client may not take what is said to it for long.
        self.free()
        if cuts_a_piece:
            raise _hang_up(message)
        record = error_record(self.dialect, self.kind, message, self.record.tail)
        # Of an announced length, a record would pass for the rest of the answer.
        if record is None or self.is_sized:
            if self.client.chunked_socket is None and not self.is_sized:
                # The end of the connection is the end of such a body: only a reset tells that it is none.
                self.client.abort()
            raise _hang_up(message)
        return record

    def _end(self, outcome: str) -> None:
        self.ended = True
        self.trace.outcome = outcome


def is_fault(status: int, outcome: str) -> bool:
    """Did the fleet fail it? Not where its client did wrong or left, a limit refused it or an operator ended it."""
    return outcome in _BROKEN or (status >= 500 and outcome != Cancelling.outcome)


def with_length(headers: list[tuple[str, str]], body: bytes) -> list[tuple[str, str]]:
    """The headers of an answer that is complete in memory."""
    return [*to_client(headers), ("Content-Length", str(len(body)))]


def _hang_up(why: str) -> BrokenPipeError:
    """What makes the server close a connection without a word, and without an end of the body."""
    return BrokenPipeError(errno.EPIPE, why)
