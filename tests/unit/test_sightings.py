"""What each worker serves, as the others can know it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from proxy_app.domain import Fleet
from proxy_app.services.sightings import Sightings


def fleet(*generation: int) -> Fleet:
    return replace(Fleet(), generation=(generation[0], generation[1]))


@pytest.fixture
def own(tmp_path: Path) -> Sightings:
    return Sightings(tmp_path)


def test_who_serves_an_older_fleet_is_waited_for(own: Sightings) -> None:
    own.note(fleet(3, 9))
    assert own.reach((3, 9))
    assert own.reach((2, 11))
    assert not own.reach((3, 10))
    assert not own.reach((4, 0))
    own.note(fleet(4, 0))
    assert own.reach((3, 10))
    own.close()


def test_who_has_said_nothing_yet_or_has_gone_is_not_waited_for(own: Sightings, tmp_path: Path) -> None:
    assert own.reach((9, 9))
    own.note(fleet(1, 1))
    own.close()
    assert own.reach((9, 9))
    assert list((tmp_path / "workers").iterdir()) == []


def test_a_worker_that_was_killed_is_forgotten_even_if_its_number_is_used_again(own: Sightings, tmp_path: Path) -> None:
    left = tmp_path / "workers" / str(os.getppid())
    left.parent.mkdir()
    left.write_text("1 1")
    assert own.reach((9, 9))
    assert not left.exists()


OTHER = """
import sys
from pathlib import Path
from dataclasses import replace
from proxy_app.domain import Fleet
from proxy_app.services.sightings import Sightings
own = Sightings(Path(sys.argv[1]))
own.note(replace(Fleet(), generation=(1, 1)))
print("told", flush=True)
sys.stdin.read()
"""


def test_a_worker_that_lives_is_waited_for_and_a_killed_one_is_not(own: Sightings, tmp_path: Path) -> None:
    command = [sys.executable, "-c", OTHER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"told\n"
        assert own.reach((1, 1))
        assert not own.reach((2, 0))
        other.kill()
        other.wait()
        assert own.reach((2, 0))


def test_where_the_folder_cannot_be_written_nobody_is_held_up(tmp_path: Path) -> None:
    (tmp_path / "workers").write_text("a file")
    own = Sightings(tmp_path)
    own.note(fleet(1, 1))
    assert own.reach((9, 9))
    own.close()
