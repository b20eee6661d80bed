"""`caravan usage`: who used how much of what, for people and for programs."""

from __future__ import annotations

import csv
import io
import json
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from conformance.fakes.http import fetch
from conformance.fakes.ollama import FakeOllama
from proxy_app.services.usage import HOUR_S
from proxy_app.store.redis import unix_now
from proxy_app.store.registry import Registry
from proxy_app.store.usage import Tally, UsageKey, UsageStore
from tests.keys import bearer, make_key, new_key
from tests.process.checkout import run
from tests.product import question
from tests.wire.shows import gateway

NUMBERS = ["requests", "errors", "tokens_in", "tokens_out", "gpu_s", "load_s", "estimated"]
ONE = Tally(2, 1, 30, 40, 1500, 250, 1)


@pytest.fixture(scope="module")
def hour() -> int:
    """This hour, or the next one where that begins while these tests run."""
    return int(unix_now() + 600) // HOUR_S * HOUR_S


@pytest.fixture(scope="module")
def folder(hour: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of two keys and of nobody, of this hour, of yesterday and of last year."""
    made = tmp_path_factory.mktemp("usage")
    key_id = new_key(made, "Ann, & Bob").split("_")[1]
    with closing(Registry(made / "data")) as registry:
        rows = {
            UsageKey(hour, key_id, "tiny", "one"): ONE,
            UsageKey(hour, key_id, "tiny", "two"): ONE,
            UsageKey(hour, "gone", "tiny", "one"): ONE,
            UsageKey(hour, "", "", ""): Tally(5, 5),
            UsageKey(hour - 24 * HOUR_S, key_id, "big", "one"): ONE,
            UsageKey(hour - 365 * 24 * HOUR_S, key_id, "old", "one"): ONE,
        }
        UsageStore(registry).add(rows, 0)
    return made


def printed(folder: Path, *words: str) -> str:
    done = run({}, folder, "usage", *words)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def rows(folder: Path, *words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(printed(folder, *words, "--format", "json"))
    return found


def test_programs_get_sums_by_key_and_model(folder: Path) -> None:
    found = {(row["key"], row["model"]): row for row in rows(folder)}
    assert set(found) == {("Ann, & Bob", "tiny"), ("gone", "tiny"), ("(no key)", "(none)"), ("Ann, & Bob", "big")}
    assert found["Ann, & Bob", "tiny"] == {
        "key": "Ann, & Bob",
        "model": "tiny",
        "requests": 4,
        "errors": 2,
        "tokens_in": 60,
        "tokens_out": 80,
        "gpu_s": 3.0,
        "load_s": 0.5,
        "estimated": 2,
    }


@pytest.mark.parametrize(("span", "count"), [("1s", 9 + 2), ("2d", 9 + 4), ("520w", 9 + 6)])
def test_as_far_back_as_was_asked(folder: Path, span: str, count: int) -> None:
    """The hour in which that time begins counts whole: an hour is the smallest that is known."""
    assert sum(row["requests"] for row in rows(folder, "--since", span, "--by", "hour")) == count


def test_counted_apart_by_whatever_was_asked(folder: Path, hour: int) -> None:
    by_backend = {row["backend"]: row["requests"] for row in rows(folder, "--by", "backend")}
    assert by_backend == {"one": 6, "two": 2, "(none)": 5}
    hours = {row["hour"] for row in rows(folder, "--by", "hour", "--by", "key")}
    assert datetime.fromtimestamp(hour, UTC).strftime("%Y-%m-%dT%H:00Z") in hours
    assert list(rows(folder, "--by", "hour", "--by", "backend")[0]) == ["hour", "backend", *NUMBERS]


def test_csv_is_read_back_as_it_was_written(folder: Path) -> None:
    found = list(csv.DictReader(io.StringIO(printed(folder, "--format", "csv"))))
    assert found == [{name: str(value) for name, value in row.items()} for row in rows(folder)]


def test_people_get_a_table(folder: Path) -> None:
    head, *lines = printed(folder).splitlines()
    assert head.split() == ["key", "model", *NUMBERS]
    assert len(lines) == len(rows(folder))
    line = next(line for line in lines if line.startswith("Ann, & Bob  tiny"))
    assert line.split()[-7:] == ["4", "2", "60", "80", "3.0", "0.5", "2"]


def test_where_nothing_was_used_it_says_so(tmp_path: Path) -> None:
    assert printed(tmp_path) == "Nothing was used in this time.\n"
    assert json.loads(printed(tmp_path, "--format", "json")) == []
    assert printed(tmp_path, "--format", "csv").split(",")[:3] == ["key", "model", "requests"]


@pytest.mark.parametrize("words", [("--since", "soon"), ("--by", "prompt"), ("--format", "xml"), ("more",)])
def test_what_makes_no_sense_is_refused(folder: Path, words: tuple[str, ...]) -> None:
    done = run({}, folder, "usage", *words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_what_was_just_used_is_told(tmp_path: Path) -> None:
    """A key and its limits made by the command, a chat with it, and its account."""
    made = make_key(tmp_path, "--label", "mine", "--limit", "rpm=2", "--limit", "tpd=1000")
    assert sorted(made["limits"]) == ["rpm=2", "tpd=1000"]
    with FakeOllama("one") as fake, gateway([fake], tmp_path) as process:
        asked = question("/api/chat", stream=False)
        answers = [
            fetch(f"{process.url}/api/chat", "POST", json=asked, headers=bearer(made["key"])).status for _ in range(3)
        ]
        process.stop()
    assert answers == [200, 200, 429]
    (good, refused) = sorted(rows(tmp_path, "--since", "1m", "--by", "key", "--by", "model"), key=lambda r: r["errors"])
    assert (good["key"], good["model"], good["requests"], good["errors"]) == ("mine", "tiny", 2, 0)
    assert (good["tokens_in"], good["tokens_out"], good["estimated"]) == (14, 8, 0)
    assert (refused["key"], refused["requests"], refused["errors"], refused["tokens_out"]) == ("mine", 1, 1, 0)


@pytest.mark.parametrize("limit", ["rpm", "rpm=x", "speed=1", "rpm=-1"])
def test_a_limit_that_makes_no_sense_is_one_sentence(tmp_path: Path, limit: str) -> None:
    done = run({}, tmp_path, "keys", "create", "--label", "x", "--limit", limit)
    assert done.returncode == 1
    assert "expected one of" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_setting_of_limits_that_makes_no_sense_is_one_sentence(tmp_path: Path) -> None:
    done = run({"CARAVAN_LIMITS": "speed=1"}, tmp_path, "usage")
    assert done.returncode != 0
    assert "CARAVAN_LIMITS" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
