"""Many backends in one process, each on a loopback address of its own: `python -m bench.crowd --port 11500`.

Each holds the models that follow those of the one before it, and shares them with its two neighbours, so that every
model has three holders.
"""

from __future__ import annotations

import argparse
import socket

from bench.backend import Connection, Server, answer, listing

HOLDERS = 3


def address_of(number: int) -> str:
    """Of 127.0.0.0/8, all of which is this machine (RFC 6890 §2.2.2)."""
    return f"127.0.{1 + number // 200}.{1 + number % 200}"


def held(number: int, servers: int, models: int) -> list[int]:
    """The numbers of the models that a server holds."""
    share = models // servers
    return [(number * share + each) % models for each in range(HOLDERS * share)]


class Crowd(Server):
    """All of them. Owns their listings, by address."""

    def __init__(self, port: int, servers: int, models: int) -> None:
        super().__init__(port, rate=50.0, models=1, fail_after=None)
        self._listings: dict[str, bytes] = {}
        for number in range(servers):
            address = address_of(number)
            listener = socket.create_server((address, port))
            listener.setblocking(False)
            self.listen(listener)
            self._listings[address] = answer(listing(held(number, servers, models)))

    def serve(self, connection: Connection, line: bytes, body: bytes) -> None:
        known = self._listings.get(connection.sock.getsockname()[0])
        if known is not None and line.startswith(b"GET /api/tags "):
            connection.send(known)
        else:
            super().serve(connection, line, body)


def main() -> None:
    """Serve until a signal ends the process."""
    parser = argparse.ArgumentParser(prog="python -m bench.crowd", description=__doc__)
    parser.add_argument(
        "--port", type=int, required=True, help="of all of them, and of 127.0.0.1, to see that they run"
    )
    parser.add_argument("--servers", type=int, default=200)
    parser.add_argument("--models", type=int, default=2000)
    options = parser.parse_args()
    Crowd(options.port, options.servers, options.models).run()


if __name__ == "__main__":
    main()
