"""The conformance suite: Caravan keeps every promise, nginx runs beside it, and a liar is found out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from conformance import report
from conformance.cli import BROKEN, KEPT, UNUSABLE, conformance
from conformance.rows import GROUPS, ROWS
from conformance.site import backend
from conformance.suite import Suite, Verdict, chosen
from tests.conformance_columns import DOC, NGINX, columns
from tests.conformance_dishonest import Gateway
from tests.conformance_naive import NaiveGateway
from tests.fakes.procs import free_port, run

# Rows that each lie of the tiny gateway turns red. While it does not lie it keeps all these promises.
LIES = {
    "ends-cleanly": {
        "endings/ndjson-fin",
        "endings/ndjson-rst",
        "endings/sse-fin",
        "endings/sse-rst",
        "endings/killed-backend",
        "endings/whole-fin",
        "endings/cut-connection-is-closed",
    },
    "asks-again": {"endings/ndjson-fin", "endings/ndjson-rst", "endings/sse-fin", "endings/sse-rst"},
    "gathers": {"fidelity/first-piece-at-once", "fidelity/lag-of-a-piece"},
    "works-on": {"cancel/before-a-stream", "cancel/in-mid-stream"},
    "stays-open": {"endings/hole-is-not-filled"},
    "believes-lengths": {"framing/two-lengths", "framing/short-body"},
    "gives-up": {"failover/busy", "failover/refused", "failover/closed-before-the-answer"},
    "shares-cookies": {"headers/cookies-are-not-replayed"},
    "passes-secrets": {"headers/credentials-stay"},
}
# Rows that whoever parses everything and writes it anew turns red,
NAIVE = {
    *("fidelity/ndjson-bytes", "fidelity/sse-bytes", "fidelity/whole-bytes", "fidelity/error-bytes"),
    *("fidelity/compressed-answer", "fidelity/question-bytes", "fidelity/large-question", "fidelity/trailers"),
    *("headers/host-is-the-backends", "headers/hop-by-hop-of-a-request", "headers/hop-by-hop-of-an-answer"),
    *("headers/named-by-connection-of-a-request", "headers/nothing-invented", "headers/repeated-headers"),
    *("headers/two-cookies-are-two-lines", "headers/cookies-are-not-replayed", "headers/credentials-stay"),
    *("headers/via", "headers/loop", "paths/query-untouched", "paths/no-other-spelling-of-a-store-route"),
    *("paths/no-other-spelling-of-a-safe-route", "framing/two-lengths", "framing/signed-length", "framing/no-host"),
    *("framing/unknown-coding", "framing/two-hosts", "framing/short-body", "failover/busy"),
    *("models/tags-of-both", "models/asks-the-holder", "models/error-in-the-first-record", "models/html-for-json"),
}
# and those that are red where nothing stands between client and backend.
DIRECT = {
    *("headers/forged-address", "paths/absolute-target", "paths/fragment-is-not-sent-on", "paths/connect-is-refused"),
    *("framing/length-and-chunked", "framing/chunked-twice", "framing/chunk-without-its-line-end"),
    *("framing/control-characters", "framing/space-in-a-name", "endings/poisoned-connection", "failover/refused"),
    *("failover/closed-before-the-answer", "failover/error-500", "failover/all-are-down", "models/names-are-ollamas"),
    *("models/gone-from-one", "models/garbage-after-200", "models/no-end-mark", "models/swallowed-error"),
}
# What no lie touches.
UNTOUCHED = {"fidelity/ndjson-bytes", "headers/own-headers-pass", "paths/query-untouched", "framing/no-host"}


@pytest.fixture(scope="module")
def found() -> dict[str, list[Verdict]]:
    """Both columns, from one run."""
    return columns(["Caravan", *(["nginx"] if NGINX else [])], ROWS)


@pytest.mark.parametrize("row", [row.id for row in ROWS])
def test_caravan_keeps_the_promise(found: dict[str, list[Verdict]], row: str) -> None:
    verdict = next(verdict for verdict in found["Caravan"] if verdict.row.id == row)
    assert verdict.kept, verdict.instead


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: apt install nginx)")
def test_nginx_is_honest_and_knows_no_models(found: dict[str, list[Verdict]]) -> None:
    """What nginx is trusted for, the suite has to see; what it cannot know, too."""
    kept = {verdict.row.id for verdict in found["nginx"] if verdict.kept}
    honest = {row.id for row in ROWS if row.group in ("endings", "cancel", "clients")}
    assert honest <= kept
    assert "models/asks-the-holder" not in kept


def test_the_page_shows_these_rows_and_that_caravan_keeps_them() -> None:
    """`make conformance` writes it."""
    shown = re.findall(r"^\| `([^`]+)` \| (.*) \| (\S+) \| (\S+) \| (\S+) \|$", DOC.read_text(), re.M)
    assert [row[:3] for row in shown] == [(row.id, report.escaped(row.promise), "pass") for row in ROWS]


def test_every_row_says_what_it_promises_and_has_a_name_of_its_own() -> None:
    assert len({row.id for row in ROWS}) == len(ROWS) >= 40
    assert all(row.promise.endswith(".") for row in ROWS)
    assert all(group.rows for group in GROUPS)


def red_rows(rows: set[str], gateway: Callable[[list[int]], AbstractContextManager[Any]]) -> dict[str, str]:
    """Run rows against a gateway with a URL; what was not kept, and what happened instead."""
    with backend("a") as a, backend("b") as b, gateway([a.port, b.port]) as running:
        suite = Suite(running.url, (a, b), patience_s=15.0)
        suite.wait_ready(0.5)
        verdicts = suite.run(chosen(sorted(rows)))
    assert {verdict.row.id for verdict in verdicts} == rows
    return {verdict.row.id: verdict.instead for verdict in verdicts if not verdict.kept}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_turns_its_rows_red(lie: str) -> None:
    red = red_rows(LIES[lie] | UNTOUCHED, lambda ports: Gateway(ports, lie))
    assert red.keys() == LIES[lie], red


def test_the_same_gateway_without_lies_keeps_those_promises() -> None:
    assert red_rows(UNTOUCHED.union(*LIES.values()), Gateway) == {}


def test_a_naive_gateway_is_found_out() -> None:
    """One that parses and writes anew, as a handler on an HTTP client library does."""
    assert red_rows(NAIVE, NaiveGateway).keys() == NAIVE


def test_no_gateway_at_all_is_no_gateway() -> None:
    """The suite against a backend itself."""

    def direct(ports: list[int]) -> AbstractContextManager[Any]:
        return nullcontext(SimpleNamespace(url=f"http://127.0.0.1:{ports[0]}"))

    assert red_rows(DIRECT, direct).keys() == DIRECT


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def ports() -> tuple[int, int]:
    return free_port(), free_port()


@pytest.fixture
def honest(ports: tuple[int, int]) -> Iterator[Gateway]:
    with Gateway(ports) as gateway:
        yield gateway


def call(ports: tuple[int, int], *arguments: str) -> tuple[int, str]:
    where = [word for port in ports for word in ("--backend", f"127.0.0.1:{port}")]
    done = CliRunner().invoke(conformance, [*arguments, *where])
    return done.exit_code, done.stdout or done.stderr


def test_the_command_prints_a_line_for_each_row(honest: Gateway, ports: tuple[int, int]) -> None:
    code, output = call(ports, honest.url, "--only", "endings/ndjson-*", "--only", "via")
    assert code == BROKEN
    assert re.search(r"^pass  endings/ndjson-fin +An NDJSON stream that ends by FIN", output, re.M)
    assert re.search(r"^FAIL  headers/via .*\n +instead: the backend saw no Via$", output, re.M)
    assert output.endswith("4 of 5 promises kept\n")


def test_the_command_prints_json(honest: Gateway, ports: tuple[int, int]) -> None:
    code, output = call(ports, honest.url, "--json", "--only", "endings/ndjson-fin")
    (row,) = json.loads(output)
    assert (code, row["row"], row["pass"], row["instead"]) == (KEPT, "endings/ndjson-fin", True, None)


def test_headers_for_a_gateway_that_wants_a_key(honest: Gateway, ports: tuple[int, int]) -> None:
    """They go with every request, and a gateway that passes them on is found out."""
    code, output = call(ports, honest.url, "--only", "credentials-stay", "--header", "Authorization: Bearer key")
    assert code == KEPT, output
    honest.lies = frozenset({"passes-secrets"})
    code, output = call(ports, honest.url, "--only", "credentials-stay", "--header", "Authorization: Bearer key")
    assert code == BROKEN
    assert "Authorization" in output


def test_a_gateway_that_is_not_there(ports: tuple[int, int]) -> None:
    code, output = call(ports, f"http://127.0.0.1:{free_port()}", "--wait", "0.1")
    assert code == UNUSABLE
    assert "not ready after 0.1 s" in output


def test_wrong_use_is_told(ports: tuple[int, int]) -> None:
    url = "http://127.0.0.1:1"
    for arguments in ([], ["https://127.0.0.1:1"], [url, "--only", "nothing"], [url, "--header", "none"]):
        assert call(ports, *arguments)[0] == UNUSABLE
    assert "HOST:PORT" in CliRunner().invoke(conformance, [url, "--backend", "x", "--backend", "y"]).output


def test_it_is_a_command_of_caravan(tmp_path: Path) -> None:
    code, output = run(["caravan", "conformance", "--list"], {}, tmp_path)
    assert code == 0
    assert [line.split()[0] for line in output.splitlines()] == [row.id for row in ROWS]
