"""Raw sockets for tests that need exact bytes, refused ports, and connects that hang."""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

# Safety net in seconds for a raw handler: a test that forgets to end it fails instead of hanging.
JOIN_DEADLINE_S = 15.0
# A connect to loopback that has not completed after this many seconds met a full backlog.
PLUG_WAIT_S = 0.05
# Where urllib3's own tests look for a host that never answers (TEST-NET-1 is not routed).
UNROUTED = ("192.0.2.1", 80)


def held_port(port: int = 0, host: str = "127.0.0.1") -> socket.socket:
    """Bind without listening: connects are refused, and the number stays ours.

    SO_REUSEADDR lets a listener of this process bind the same port beside it.
    """
    # By its number: asyncio sets TCP_NODELAY only on sockets that say they are TCP, and an accepted one says what its
    # listener says. Without it every second packet on a used connection waits 40 ms for an ACK.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


def fill_backlog(listener: socket.socket) -> list[socket.socket]:
    """Let a bound socket listen with a full queue; the kernel then drops every further SYN.

    Returns the connections that fill it; the hole lasts while they and the listener are open.
    """
    listener.listen(0)
    plugs: list[socket.socket] = []
    for _ in range(16):
        plug = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        plug.setblocking(False)
        plug.connect_ex(listener.getsockname())
        if not select.select([], [plug], [], PLUG_WAIT_S)[1]:
            plug.close()
            return plugs
        plugs.append(plug)
    for plug in plugs:
        plug.close()
    raise RuntimeError("this kernel accepts beyond a backlog of 0: no black hole possible")


@contextmanager
def dead_address() -> Iterator[tuple[str, int]]:
    """An address that refuses connections, and that nobody else can take meanwhile."""
    with closing(held_port()) as holder:
        yield holder.getsockname()


@contextmanager
def tarpit() -> Iterator[tuple[str, int]]:
    """An address whose connects hang: for connect timeouts, without any network."""
    with closing(held_port()) as listener:
        plugs = fill_backlog(listener)
        try:
            yield listener.getsockname()
        finally:
            for plug in plugs:
                plug.close()


def reset(sock: socket.socket) -> None:
    """Close with an RST instead of a FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def read_request(conn: socket.socket) -> bytes:
    """Read a head and a body with Content-Length; what is there at EOF otherwise."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = conn.recv(65536)
        if not piece:
            return data
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    missing = content_length(head) - len(body)
    while missing > 0:
        piece = conn.recv(65536)
        if not piece:
            break
        data += piece
        missing -= len(piece)
    return data


def content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return 0


@dataclass(eq=False)
class RawServer:
    """A listener whose behaviour is one function of the test.

    Args:
        quit: set when the test is over; a handler that stalls waits on it.
    """

    host: str
    port: int
    quit: threading.Event = field(default_factory=threading.Event)
    requests: list[bytes] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


Handler = Callable[[socket.socket, RawServer], None]


@contextmanager
def raw_server(handler: Handler) -> Iterator[RawServer]:
    """Serve every connection by `handler(connection, server)`, one after the other.

    The handler reads (see read_request) and writes exact bytes; the connection is closed when it
    returns. An error in a handler fails the test, except those of a peer that went away.
    """
    with closing(held_port()) as listener:
        listener.listen(128)
        server = RawServer(*listener.getsockname())
        thread = threading.Thread(target=_serve_raw, args=(listener, handler, server), name="raw-server", daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.quit.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(JOIN_DEADLINE_S)
    if thread.is_alive():
        raise RuntimeError("the raw handler does not end; it must wait on server.quit")
    if server.errors:
        raise server.errors[0]


def _serve_raw(listener: socket.socket, handler: Handler, server: RawServer) -> None:
    while not server.quit.is_set():
        try:
            conn, _ = listener.accept()
        except OSError:
            return
        conn.settimeout(JOIN_DEADLINE_S)
        try:
            handler(conn, server)
        except (ConnectionError, TimeoutError):
            pass
        except BaseException as exc:  # the test's thread raises it
            server.errors.append(exc)
        finally:
            conn.close()


def answering(response: bytes) -> Handler:
    """A handler that reads one request, keeps it, sends these bytes and closes."""

    def handler(conn: socket.socket, server: RawServer) -> None:
        server.requests.append(read_request(conn))
        conn.sendall(response)

    return handler
