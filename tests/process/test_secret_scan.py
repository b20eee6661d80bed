"""After a run with every form of every credential: none of them, and no prompt, is anywhere but with its owner."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest
import redis

from conformance.fakes import faults
from conformance.fakes.http import CutOff, RawClient, RawResponse
from conformance.fakes.ollama import FakeOllama
from tests.fakes import procs
from tests.fakes.redis import PrivateRedis
from tests.keys import ADMIN, STRANGER, Signer, new_key, revoke, ways
from tests.product import NO_BREAKER, STREAMING, environment, question

pytestmark = pytest.mark.leaky

PROMPT = "canary-Prompt-7f1e the launch code"
BACKEND = "canary-Answer-51c2"
# What it says ends so; its name alone is in its documents too.
ANSWER = f"{BACKEND}."
OTHERS = {"Cookie": "session=canary-Cookie-2b77", "Proxy-Authorization": "Basic Y2FuYXJ5LVByb3h5"}
# More than what is held in memory.
LONG = PROMPT + " " + "x" * (1 << 20)


def spellings(secret: str) -> set[bytes]:
    """A secret as it may stand somewhere: as it is, percent-coded, and inside of base64 wherever it begins."""
    raw = secret.encode()
    coded = {base64.b64encode(bytes(shift) + raw)[4 if shift else 0 : -4] for shift in range(3)}
    return {raw, quote(secret, safe="").encode(), raw.hex().encode()} | coded


@dataclass
class Run:
    """What is left of a run. Args: traces: all places where a secret might be. signatures: all that were sent."""

    folder: Path
    fake: FakeOllama
    secrets: dict[str, str]
    answers: list[RawResponse] = field(default_factory=list)
    traces: dict[str, bytes] = field(default_factory=dict)
    signatures: list[str] = field(default_factory=list)

    def found(self, secret: str) -> list[str]:
        """The places where it is."""
        return [place for place, text in self.traces.items() if any(each in text for each in spellings(secret))]


def presented(run: Run, path: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The path as it is asked for, and the headers: every credential in every way."""
    for key in run.secrets.values():
        for headers in ways(key).values():
            yield path, headers | OTHERS
        yield path, {"Authorization": key}
        yield f"/k/{key}{path}", {}
        yield f"/k/{quote(key, safe='').replace('_', '%5F')}{path}", {}
    for signer in (Signer(), Signer(bytes(32))):
        target, headers = signer.request("POST", path)
        run.signatures.append(headers["Authorization"].partition(":")[2])
        yield target, headers


def exchange(run: Run, url: str, path: str, target: str, headers: dict[str, str], prompt: str = PROMPT) -> None:
    asked = {**question(path), "prompt": prompt, "system": prompt, "input": prompt}
    asked["messages"] = [{"role": "user", "content": prompt}]
    with RawClient(url) as client, suppress(CutOff):
        run.answers.append(client.request("POST", target, headers=headers, json=asked))


def everything(run: Run, url: str) -> None:
    for path in ("/api/chat", "/v1/chat/completions", "/v1/messages"):
        for target, headers in presented(run, path):
            exchange(run, url, path, target, headers)
    good = ways(run.secrets["good"])["bearer"]
    for path in STREAMING:
        for fault in (faults.Error500, faults.Refuse503Busy, faults.RstBeforeHeaders, faults.ErrorInFirstChunk):
            run.fake.fault(path, fault, times=1)
            exchange(run, url, path, path, good)
        run.fake.fault(path, faults.StreamThen(2, faults.Rst), times=1)
        exchange(run, url, path, path, good)
    run.fake.clear_faults()
    exchange(run, url, "/api/chat", "/api/chat", good, LONG)
    for body in (b"{", f'{{"model":"tiny","messages":"{PROMPT}"}}'.encode(), f'["{PROMPT}"]'.encode()):
        with RawClient(url) as client:
            run.answers.append(client.request("POST", "/api/chat", body, good))
    for method, target in (("GET", "/api/tags"), ("GET", "/no/such"), ("DELETE", "/api/delete"), ("PUT", "/api/chat")):
        for key in run.secrets.values():
            with RawClient(url) as client:
                run.answers.append(client.request(method, target, headers=ways(key)["bearer"]))
    wrong = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\nContent-Length: x\r\n\r\n"
    with RawClient(url) as client, suppress(CutOff):
        client.send(wrong % run.secrets["good"].encode())
        run.answers.append(client.read_response())


def of_redis(url: str) -> bytes:
    """Every key and every value."""
    found: list[object] = []
    with redis.Redis.from_url(url) as client:
        readers = {
            b"string": client.get,
            b"hash": client.hgetall,
            b"set": client.smembers,
            b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
            b"list": lambda key: client.lrange(key, 0, -1),
            # It has just ended.
            b"none": lambda key: None,
        }
        for key in client.scan_iter():
            found += [key, readers[client.type(key)](key)]
        assert found, "nothing was shared"
        found += client.slowlog_get(128)
    return repr(found).encode()


def of_backend(fake: FakeOllama) -> bytes:
    """What a backend was told beside the bodies, which are for it."""
    return repr([(each.method, each.path, each.headers) for each in fake.requests]).encode()


def of_files(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in folder.rglob("*"):
        # A body that was kept in a file may go just now.
        with suppress(FileNotFoundError):
            if path.is_file():
                found[f"file {path.name}"] = path.read_bytes()
    return found


@pytest.fixture(scope="module", params=["info", "debug"])
def run(
    request: pytest.FixtureRequest, redis_server: PrivateRedis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Run]:
    """One with all logs, in which the key of a path counts or not."""
    folder = tmp_path_factory.mktemp("scan")
    redis_server.flush()
    secrets = {
        "good": new_key(folder, "good", signer=Signer().line),
        "narrow": new_key(folder, "narrow", scopes=("read",), models=("other*",)),
        "ended": new_key(folder, "ended"),
        "stranger": STRANGER,
        "admin": ADMIN,
    }
    revoke(folder, "ended")
    more = {"CARAVAN_ADMIN_KEY": ADMIN, "CARAVAN_LOG_LEVEL": request.param, **NO_BREAKER}
    more["CARAVAN_KEY_IN_PATH"] = "1" if request.param == "info" else "0"
    # The fake says its own name in its answers.
    with FakeOllama(BACKEND, ["tiny"]) as fake:
        made = Run(folder, fake, secrets)
        env = environment([fake], redis_server.url, OLLAMA_BACKENDS=f"one={fake.url}", **more)
        with procs.caravan(env, folder, "refresh") as refresher, procs.gunicorn(env, folder) as process:
            process.wait_ready()
            everything(made, process.url)
            fake.wait_idle()
            made.traces["redis"] = of_redis(redis_server.url)
            made.traces |= of_files(folder / "data")
            process.stop()
            made.traces["log"] = process.output.encode()
            made.traces["refresher's log"] = refresher.output.encode()
        made.traces |= {f"{name} at the end": text for name, text in of_files(folder / "data").items()}
        made.traces["backend"] = of_backend(fake)
        made.traces["errors"] = b"\n".join(each.head + each.body for each in made.answers if each.status >= 400)
        made.traces["heads"] = b"\n".join(each.head for each in made.answers)
        yield made


def test_the_run_was_one_in_which_much_happened(run: Run) -> None:
    """Else nothing could have been found."""
    seen = {answer.status for answer in run.answers}
    assert {200, 400, 401, 403, 404, 405, 502} <= seen
    assert run.fake.count("/api/chat") > 10
    assert b'"request_id"' in run.traces["log"]
    assert any(ANSWER.encode() in answer.body for answer in run.answers)
    assert any(PROMPT.encode() in each.body for each in run.fake.requests)


def test_the_scan_finds_what_is_there(run: Run) -> None:
    planted = Run(run.folder, run.fake, {}, traces={"empty": b""})
    for text in (
        PROMPT.encode(),
        quote(PROMPT).encode(),
        *(base64.b64encode(b"a" * n + PROMPT.encode()) for n in range(4)),
    ):
        planted.traces["planted"] = b"before%bafter" % text
        assert planted.found(PROMPT) == ["planted"]
    assert {"redis", "log", "refresher's log", "backend", "file caravan.db", "errors"} <= set(run.traces)
    assert all(run.traces[place] for place in ("redis", "log", "backend", "file caravan.db", "errors"))


@pytest.mark.parametrize("whose", ["good", "narrow", "ended", "stranger", "admin"])
def test_a_key_is_nowhere(run: Run, whose: str) -> None:
    # Its end is the secret; its id may be known.
    assert run.found(run.secrets[whose][12:]) == []


def test_a_signature_is_nowhere(run: Run) -> None:
    assert len(run.signatures) == 6
    assert all(len(base64.b64decode(signature)) == 64 for signature in run.signatures)
    for signature in run.signatures:
        assert run.found(signature) == []
    # Its public half is registered, and so in the registry.
    assert all(place.startswith("file caravan.db") for place in run.found(Signer().public))
    assert run.found(Signer(bytes(32)).public) == []


@pytest.mark.parametrize("secret", [*OTHERS.values(), "canary-Cookie-2b77"])
def test_what_else_a_client_sends_is_nowhere(run: Run, secret: str) -> None:
    assert run.found(secret) == []


@pytest.mark.parametrize("text", [PROMPT, ANSWER])
def test_what_is_said_is_nowhere(run: Run, text: str) -> None:
    assert run.found(text) == []


def test_the_log_knows_keys_by_their_id(run: Run) -> None:
    lines = [json.loads(line) for line in run.traces["log"].splitlines() if line.startswith(b"{")]
    named = {line.get("key") or line.get("key_id") for line in lines}
    assert run.secrets["good"][3:11] in named
