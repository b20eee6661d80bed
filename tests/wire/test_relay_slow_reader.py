"""A backend that is slow to take a long request."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from conformance.fakes.http import RawClient
from conformance.fakes.raw import RawServer, raw_server
from tests.fakes import procs
from tests.product import QUICK

pytestmark = pytest.mark.leaky

TAGS = {"models": [{"name": "tiny:latest", "model": "tiny:latest", "digest": "d", "details": {}}]}
# In seconds: far more than a connection on this machine takes, and twice as long as that nothing is read.
CONNECT_S, LATE_S = 1, 2
# For all of it; the answer comes when all was read.
PATIENCE_S = 60.0
# More than the kernel's buffers between two sockets hold.
BODY = json.dumps({"model": "tiny", "stream": False, "images": ["A" * (24 << 20)]}).encode()


def answer(conn: socket.socket, value: object) -> None:
    body = json.dumps(value).encode()
    lines = ["HTTP/1.1 200 OK", "Content-Type: application/json", f"Content-Length: {len(body)}", "Connection: close"]
    conn.sendall("\r\n".join([*lines, "", ""]).encode() + body)


def reads_late(conn: socket.socket, server: RawServer) -> None:
    """Answers GETs at once; leaves a POST unread for two connect timeouts."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += conn.recv(4096)
    if data.startswith(b"GET"):
        answer(conn, TAGS)
        return
    server.quit.wait(LATE_S)
    _, _, body = data.partition(b"\r\n\r\n")
    got = len(body)
    while got < len(BODY):
        got += len(conn.recv(1 << 20))
    answer(conn, {"done": True, "got": got})


def test_the_connect_timeout_does_not_limit_how_long_a_body_may_take(tmp_path: Path) -> None:
    with raw_server(reads_late) as backend:
        env = {**QUICK, "OLLAMA_BACKENDS": f"late={backend.url}", "CARAVAN_CONNECT_TIMEOUT": str(CONNECT_S)}
        with procs.gunicorn(env, tmp_path) as process:
            process.wait_ready(deadline_s=20)
            with RawClient(process.url, PATIENCE_S) as client:
                got = client.request("POST", "/api/chat", BODY)
    assert (got.status, got.json()) == (200, {"done": True, "got": len(BODY)})
