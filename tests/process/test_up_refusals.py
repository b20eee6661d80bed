"""What does not start says why in one sentence."""

from __future__ import annotations

import socket
from pathlib import Path

from conformance.fakes.http import fetch
from tests.conftest import FakeFactory
from tests.fakes import procs
from tests.product import environment


def test_a_second_one_on_the_same_folder_is_refused_and_harms_nothing(fakes: FakeFactory, tmp_path: Path) -> None:
    env = environment([fakes("one")])
    with procs.caravan_up(env, tmp_path) as first:
        first.wait_ready(deadline_s=20)
        second = procs.caravan_up(env, tmp_path)
        with second:
            assert second.wait() == 2
            assert "another `caravan up` runs" in second.output
            assert "Traceback" not in second.output
        assert procs.socket_files(tmp_path), "the first one's Redis keeps its socket"
        assert fetch(f"{first.url}/readyz").status == 200


def test_a_port_that_is_taken_is_named(fakes: FakeFactory, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with procs.caravan_up(environment([fakes("one")], PORT=str(port)), tmp_path) as process:
            assert process.wait() == 2
            assert f"PORT: cannot listen on 127.0.0.1:{port}" in process.output


def test_a_folder_that_cannot_be_made_is_named(fakes: FakeFactory, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    env = environment([fakes("one")], DATA_DIR=str(tmp_path / "file" / "data"))
    with procs.caravan_up(env, tmp_path) as process:
        assert process.wait() == 2
        assert "DATA_DIR:" in process.output
        assert "Traceback" not in process.output


def test_gunicorns_own_bind_option_opens_no_door(fakes: FakeFactory, tmp_path: Path) -> None:
    bind = f"0.0.0.0:{procs.free_port()}"
    with procs.gunicorn(environment([fakes("one")]), tmp_path, "-b", bind) as process:
        assert process.wait() == 2
        assert "HOST: 0.0.0.0 is a public address" in process.output
        assert "Traceback" not in process.output
