"""The stream that tells open pages when to look again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from conformance.fakes.http import CutOff, RawClient, fetch
from conformance.fakes.ollama import FakeOllama
from tests.admin import LIVE, AdminSite, admin_site
from tests.fakes.redis import PrivateRedis
from tests.keys import bearer, new_key, revoke
from tests.wire.scripted import LAST_CHUNK
from tests.wire.shows import until

# The fakes live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = pytest.mark.leaky

# So many each worker has.
PAGES = 6
# Bound in seconds for each read: a login is looked at every five seconds, and a machine may be slow.
READ_S = 20.0
CHANGED = b"event: changed\n"
# How long a stop may take that waits for no page, in seconds; gunicorn itself would wait 25.
STOP_S = 15.0


@pytest.fixture(scope="module")
def site(redis_server: PrivateRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdminSite]:
    redis_server.flush()
    folder = tmp_path_factory.mktemp("live")
    with FakeOllama("one", ["tiny"]) as fake, admin_site(folder, [fake], redis_server.url) as made:
        yield made


def listen(site: AdminSite, key: str = "admin") -> RawClient:
    """An open page; it has had its first line."""
    client = RawClient(site.url, READ_S)
    client.send_request("GET", LIVE, headers=bearer(site.keys[key]))
    head = client.read_head()
    assert head.status == 200
    assert head.header("content-type") == "text/event-stream"
    assert head.header("cache-control") == "no-store"
    client.read_until(b"retry: ")
    return client


@contextmanager
def pages_of_every_worker(site: AdminSite) -> Iterator[list[RawClient]]:
    """Open pages, the same number at each worker."""
    with ExitStack() as stack:
        opened = site.process.each(lambda: [stack.enter_context(listen(site)) for _ in range(PAGES)])
        yield [page for pages in opened for page in pages]


def drain(site: AdminSite, draining: bool) -> None:
    assert site.call("PATCH", "/backends/one", {"draining": draining}).status == 200


@pytest.mark.parametrize(("key", "status"), [(None, 401), ("user", 403), ("everything-else", 403)])
def test_nobody_else_hears_it(site: AdminSite, key: str | None, status: int) -> None:
    answer = fetch(site.url + LIVE, headers=bearer(site.keys[key]) if key else {})
    assert answer.status == status


def test_every_open_page_hears_of_a_change_whoever_made_it(site: AdminSite) -> None:
    with pages_of_every_worker(site) as pages:
        for draining in (True, False):
            drain(site, draining)
            for page in pages:
                page.read_until(CHANGED)


def test_an_open_page_hears_what_a_request_used(site: AdminSite) -> None:
    """It is written down only when the request is long over."""
    with listen(site) as page:
        before = site.get("/usage")["rows"]
        assert site.chat(site.keys["user"], "tiny").status == 200
        while site.get("/usage")["rows"] == before:
            page.read_until(CHANGED)


def connections(site: AdminSite, clients: set[int]) -> int:
    """From these ports to the product's, as its workers see them; one that only the client has closed is among them."""
    found = [each for worker in site.process.workers for each in worker.net_connections("tcp")]
    held = (psutil.CONN_ESTABLISHED, psutil.CONN_CLOSE_WAIT)
    ours = [each for each in found if each.status in held and each.laddr.port == site.process.port]
    return sum(each.raddr.port in clients for each in ours)


def test_pages_that_are_closed_leave_nothing(site: AdminSite) -> None:
    with pages_of_every_worker(site) as pages:
        clients = {page.sock.getsockname()[1] for page in pages}
        assert connections(site, clients) == 2 * PAGES
    turns = iter(range(1000))

    def are_gone() -> bool:
        # Whoever has gone is noticed when it is told something.
        drain(site, next(turns) % 2 == 0)
        return not connections(site, clients)

    until(are_gone, "the workers have closed them", deadline_s=15)
    drain(site, False)


def test_a_page_ends_with_the_key_that_opened_it(site: AdminSite) -> None:
    site.keys["brief"] = new_key(site.folder, "brief", scopes=("admin",))
    site.process.wait_each(lambda: site.call("GET", "/events", key="brief").status == 200, "a new key is let in")
    with listen(site, "brief") as page:
        revoke(site.folder, "brief")
        page.read_until(LAST_CHUNK)


def test_a_stop_does_not_wait_for_open_pages(tmp_path: Path) -> None:
    with FakeOllama("one", ["tiny"]) as fake, admin_site(tmp_path, [fake], workers=1) as site, listen(site) as page:
        site.process.child.terminate()
        assert page.read_until(LAST_CHUNK).endswith(b"\r\n" + LAST_CHUNK), "it was cut instead of ended"
        assert site.process.wait(STOP_S) == 0
        with pytest.raises(CutOff):
            page.read_until(b"more")
