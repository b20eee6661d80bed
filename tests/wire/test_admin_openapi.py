"""The OpenAPI document of the admin API, and whether the API keeps to it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance.fakes.ollama import FakeOllama
from tests.admin import API, CALLS, DOORS, AdminSite, admin_site, fakes_of
from tests.fakes.procs import BIN, clean_environment

# The fakes live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = pytest.mark.leaky

# Seconds; a healthy run takes a fraction.
RUN_S = 240
EXAMPLES = "6"
# What is asked of every answer. Not that what the document allows is accepted: it does not know which names exist.
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,ignored_auth,unsupported_method"
)
# A request line that is too long is refused before anybody looks what is wrong with it.
CONFIG = """
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 409, 413, 414, 422, 429]
"""
METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")


@pytest.fixture(scope="module")
def fakes_up() -> Iterator[tuple[FakeOllama, ...]]:
    with fakes_of({"one": ["tiny", "me/one:7b"], "two": ["tiny"]}) as started:
        yield started


@pytest.fixture(scope="module")
def site(
    fakes_up: tuple[FakeOllama, ...], redis_server: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AdminSite]:
    redis_server.flush()
    folder = tmp_path_factory.mktemp("openapi")
    with admin_site(folder, fakes_up, redis_server.url, CARAVAN_LOGIN_ATTEMPTS="100000") as made:
        assert made.chat(made.keys["user"], "tiny").status == 200
        yield made


@pytest.fixture(scope="module")
def document(site: AdminSite) -> dict[str, Any]:
    found: dict[str, Any] = site.get("/openapi.json")
    return found


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By method and path below the API."""
    base = document.get("servers", [{"url": ""}])[0]["url"].rstrip("/")
    return {
        f"{method.upper()} {(base + path).removeprefix(API)}": about
        for path, item in document["paths"].items()
        for method, about in item.items()
        if method in METHODS
    }


def test_it_has_every_call(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.")
    # All but the document itself.
    wanted = {f"{call.method} {call.path}" for call in (*CALLS, *DOORS)} - {"GET /openapi.json"}
    assert wanted - operations(document).keys() == set()


def test_every_call_says_what_it_does_and_how_it_refuses(document: dict[str, Any]) -> None:
    for name, about in operations(document).items():
        assert about.get("summary") or about.get("description"), name
        assert about["operationId"], name
        assert "default" in about["responses"] or {"401", "403"} <= about["responses"].keys(), name
    names = [about["operationId"] for about in operations(document).values()]
    assert len(names) == len(set(names))


def run(site: AdminSite, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Send what the document allows, and what it does not. The same requests in every run."""
    (folder / "schemathesis.toml").write_text(CONFIG)
    command = [str(BIN / "schemathesis"), "run", f"{site.url}{API}/openapi.json", "--no-color"]
    command += ["--header", f"Authorization: Bearer {site.keys['admin']}", "--checks", CHECKS, "--workers", "1"]
    command += ["--phases", "examples,coverage,fuzzing", "--max-examples", EXAMPLES]
    command += ["--generation-deterministic", "--continue-on-failure", "--request-timeout", "30", *more]
    return subprocess.run(
        command, cwd=folder, env=clean_environment({}), capture_output=True, text=True, timeout=RUN_S, check=False
    )


@pytest.mark.timeout(RUN_S + 60)
def test_the_api_keeps_to_it_whatever_comes(site: AdminSite, document: dict[str, Any], tmp_path: Path) -> None:
    done = run(site, tmp_path)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    # It was let in: what is refused breaks nothing.
    assert site.get("/keys")["keys"]
    assert f"Tested: {len(operations(document))}" in done.stdout
