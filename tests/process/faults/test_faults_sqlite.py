"""The registry locked, read-only, corrupt, without room, deleted: serving goes on with what is known."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import psutil
import pytest

from conformance.fakes.http import fetch
from tests.fakes import procs
from tests.process.faults.site import Site, prepare_fleet, settings, site
from tests.process.faults.traffic import Traffic, longest_gap_s, tell
from tests.product import question

# The talkers live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = [pytest.mark.leaky, pytest.mark.alone]

# How long the registry stays locked, in seconds: many times any wait that could hold a stream up.
LOCKED_S = 5.0
# No stream may stand still for so long: above what a busy machine does, far below LOCKED_S.
GAP_S = 3.0
PAGE = 4096


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("site")) as made:
        made.warm_up()
        yield made


@pytest.fixture
def here(shared: Site) -> Iterator[Site]:
    """The shared product; after each test nothing is in flight and nothing was logged that may not be."""
    yield shared
    shared.assert_calm()


def files(data: Path) -> list[Path]:
    """The registry's own: the database, its log, and the log's index."""
    return sorted(data.glob("caravan.db*"))


def assert_unharmed(traffic: Traffic) -> None:
    assert not traffic.failed, traffic.failed[:3]
    assert longest_gap_s(traffic.replies) < GAP_S


def test_a_registry_that_is_locked_for_long_holds_no_stream_up(here: Site) -> None:
    with here.traffic() as traffic:
        with closing(sqlite3.connect(here.data / "caravan.db", timeout=5, isolation_level=None)) as db:
            db.execute("BEGIN EXCLUSIVE")
            here.talkers[0].add_model("after-the-lock")
            tell("locked", traffic.during(LOCKED_S))
            here.refresher.wait_output("is locked by another process")
            db.execute("ROLLBACK")
        here.wait_listed("after-the-lock:latest")
    assert_unharmed(traffic)


@contextmanager
def without_room(processes: Iterable[psutil.Process]) -> Iterator[None]:
    """No file of these processes can grow: what they write fails as on a full disk, their logs too."""
    limits = [(process, process.rlimit(psutil.RLIMIT_FSIZE)) for process in processes]
    for process, (_, hard) in limits:
        process.rlimit(psutil.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        for process, before in limits:
            process.rlimit(psutil.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_no_stream_and_is_forgotten_once_there_is_room(here: Site) -> None:
    long_body = question("/api/chat", stream=False, options={"num_predict": 3}, system="x" * (3 << 20))
    with here.traffic() as traffic:
        with without_room([psutil.Process(here.refresher.pid), *here.process.workers]):
            here.talkers[0].add_model("after-the-room")
            traffic.more(60)
            answer = fetch(f"{here.url}/api/chat", "POST", json=long_body)
            traffic.more(20)
        here.wait_listed("after-the-room:latest")
    assert_unharmed(traffic)
    # A body that is kept on disk has no place to go; whatever is said of it, it is said in full.
    assert answer.complete
    assert answer.status == 200 or (answer.status in (503, 507) and set(answer.json()) == {"error"})
    assert fetch(f"{here.url}/api/chat", "POST", json=long_body).status == 200


def damage(data: Path) -> None:
    """Overwrite the first page of what is there."""
    for path in files(data):
        with path.open("r+b") as file:
            file.write(b"\xa5" * PAGE)


def kept_aside(data: Path) -> list[Path]:
    """What was put out of the way, for whoever wants to look at it; without its log."""
    return [path for path in data.glob("caravan.db.damaged-*") if path.read_bytes()[:PAGE] == b"\xa5" * PAGE]


def test_a_registry_damaged_while_running_is_replaced_and_fails_no_chat(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        here.warm_up()
        with here.traffic() as traffic:
            damage(here.data)
            here.talkers[0].add_model("later")
            traffic.more(60)
            here.wait_listed("later:latest", 15)
            traffic.more(20)
        assert_unharmed(traffic)
        assert kept_aside(here.data)
        assert said_damaged(here) == 1, "a state is said once"
        here.assert_calm()


def test_a_registry_damaged_before_the_start_is_replaced(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    (data / "caravan.db").write_bytes(b"\xa5" * PAGE * 4)
    with site(tmp_path) as here:
        here.warm_up()
        assert len(kept_aside(data)) == 1
        assert said_damaged(here) == 1, "a state is said once"
        here.assert_calm()


def said_damaged(here: Site) -> int:
    """How often all processes together told where the damaged file is."""
    return sum(process.output.count("kept as caravan.db.damaged-") for process in (here.process, here.refresher))


@contextmanager
def read_only(data: Path) -> Iterator[None]:
    """Take the right to write away from everybody, from root too."""
    paths = [data / "caravan.db"]
    if os.getuid() == 0:
        done = subprocess.run(["chattr", "+i", *paths], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"root may write everything here: {done.stderr}")
    else:
        paths[0].chmod(0o400)
    try:
        yield
    finally:
        if os.getuid() == 0:
            subprocess.run(["chattr", "-i", *paths], check=True)
        else:
            paths[0].chmod(0o600)


def test_a_read_only_registry_is_served_from_and_written_once_it_can_be(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with prepare_fleet() as talkers, ExitStack() as stack:
        env = {**settings(talkers), "DATA_DIR": str(data)}
        code, output = procs.run(["caravan", "refresh", "--once"], env, tmp_path)
        assert code == 0, output
        with read_only(data):
            here = stack.enter_context(site(tmp_path, talkers=talkers))
            with here.traffic() as traffic:
                traffic.more(60)
            assert_unharmed(traffic)
            here.refresher.wait_output("is read-only")
            talkers[0].add_model("later")
        here.wait_listed("later:latest")
        here.assert_clean_logs()


def test_a_data_folder_deleted_while_running_fails_no_chat(shared: Site) -> None:
    """The last test of the shared product: what it has left is what it has open."""
    with shared.traffic() as traffic:
        shutil.rmtree(shared.data)
        traffic.during(3.0)
        shared.talkers[0].add_model("after-the-folder")
        shared.wait_listed("after-the-folder:latest", 15)
    assert_unharmed(traffic)
    shared.assert_calm()
    shared.process.terminate()
    assert shared.process.wait() == 0
