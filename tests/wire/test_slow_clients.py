"""Clients that stop in the middle of a request hold nothing for long."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.fakes.http import RawClient
from tests.conftest import FakeFactory
from tests.product import gateway

pytestmark = pytest.mark.leaky


def test_a_body_that_stops_coming_is_a_408_and_ends_the_connection(fakes: FakeFactory, tmp_path: Path) -> None:
    fake = fakes("one", ["tiny"])
    with gateway([fake], tmp_path, CARAVAN_CLIENT_TIMEOUT="0.2") as process, RawClient(process.url) as client:
        client.send(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        answer = client.read_response()
        assert (answer.status, answer.json()) == (408, {"error": "the request body stopped coming"})
        assert client.closed_by_peer(5)
    assert fake.count("/api/chat") == 0
