"""All keys of a worker: who is recognised, and from where, and until when."""

from __future__ import annotations

import base64
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxy_app.dialects.credentials import Signed, digest, new_key, presented
from proxy_app.domain import Caller
from proxy_app.domain.callers import ALL_SCOPES
from proxy_app.services.keyring import KeyRing, public_key, ring_of
from proxy_app.services.setup import MARK
from proxy_app.settings import load
from proxy_app.store.keys import StoredKey
from tests.keys import ADMIN, STRANGER, Signer

HERE = "127.0.0.1"
NOW = time.time()
SIGNER = Signer()


def stored(**about: Any) -> tuple[StoredKey, str]:
    key_id, text = new_key()
    return StoredKey(key_id, "test", ("infer",), NOW - 60, digest=digest(text), **about), text


def ring(*keys: StoredKey, admin: str | None = None, folder: Path = Path("nowhere")) -> KeyRing:
    env = {"DATA_DIR": str(folder), **({"CARAVAN_ADMIN_KEY": admin} if admin else {})}
    return ring_of(keys, load(env, None))


def checked(key: StoredKey, text: str, address: str = HERE) -> Caller | None:
    return ring(key).check(text, address)


def test_a_key_is_recognised_with_its_scopes_and_its_patterns_in_lower_case() -> None:
    key, text = stored(models=("LLama3*", "tiny"))
    assert checked(key, text) == Caller(key.id, frozenset(("infer",)), ("llama3*", "tiny"))


@pytest.mark.parametrize("given", [None, "", "ollama", STRANGER])
def test_what_is_no_key_is_nobody(given: str | None) -> None:
    key, _ = stored()
    assert ring(key).check(given, HERE) is None
    assert ring().check(given, HERE) is None


def test_a_key_that_is_changed_anywhere_is_nobody() -> None:
    key, text = stored()
    for place in range(len(text)):
        other = "b" if text[place] != "b" else "c"
        assert checked(key, text[:place] + other + text[place + 1 :]) is None, place
    for length in range(len(text)):
        assert checked(key, text[:length]) is None
    assert checked(key, text + "A") is None


def test_one_key_with_the_id_of_another_is_nobody() -> None:
    (first, one), (second, two) = stored(), stored()
    mixed = f"cv_{first.id}_{two.rpartition('_')[2]}"
    assert ring(first, second).check(mixed, HERE) is None
    assert ring(first, second).check(one, HERE) is not None


def test_what_is_stored_of_a_key_opens_nothing() -> None:
    key, _ = stored()
    assert checked(key, key.digest) is None
    assert checked(key, f"cv_{key.id}_{key.digest}") is None


@pytest.mark.parametrize("end", ["expires_at", "revoked_at"])
def test_a_key_ends_at_its_time(end: str) -> None:
    key, text = stored(**{end: NOW + 86400})
    assert checked(key, text) is not None
    assert checked(replace(key, **{end: NOW - 1}), text) is None


@pytest.mark.parametrize(
    ("network", "inside", "outside"),
    [
        ("10.1.0.0/16", "10.1.2.3", "10.2.0.1"),
        ("10.1.0.0/16", "::ffff:10.1.2.3", "::ffff:10.2.0.1"),
        ("192.168.0.7/32", "192.168.0.7", "192.168.0.8"),
        ("2001:db8::/32", "2001:db8::1", "2001:db9::1"),
        ("::1/128", "::1", "127.0.0.1"),
        ("0.0.0.0/0", "8.8.8.8", "2001:db8::1"),
        ("fe80::/10", "fe80::1%eth0", "fd00::1"),
    ],
)
def test_a_key_counts_from_its_network_alone(network: str, inside: str, outside: str) -> None:
    key, text = stored(networks=(network,))
    assert checked(key, text, inside) is not None
    for address in (outside, "", "unix:", "localhost", "1.2.3.4.5"):
        assert checked(key, text, address) is None, address


def test_one_of_several_networks_is_enough() -> None:
    key, text = stored(networks=("10.0.0.0/8", "2001:db8::/32"))
    assert checked(key, text, "10.9.9.9")
    assert checked(key, text, "2001:db8::9")
    assert checked(key, text, "11.0.0.1") is None


def test_the_key_of_the_settings_has_all_rights() -> None:
    assert ring(admin=ADMIN).check(ADMIN, "8.8.8.8") == Caller("bootstrap", ALL_SCOPES)
    assert ring(admin=ADMIN).check(ADMIN[:-1], HERE) is None
    assert ring(admin=ADMIN).check(digest(ADMIN), HERE) is None
    assert ring().check("", HERE) is None


def test_a_ring_does_not_print_what_it_knows() -> None:
    key, text = stored()
    shown = repr(ring(key, admin=ADMIN))
    for secret in (text, key.digest, ADMIN, digest(ADMIN)):
        assert secret not in shown


def test_a_ring_is_empty_where_there_never_was_a_key(tmp_path: Path) -> None:
    assert ring().is_empty
    key, _ = stored(revoked_at=NOW - 1)
    assert not ring(key).is_empty
    assert not ring(admin=ADMIN).is_empty
    assert not ring(folder=tmp_path).is_lost
    (tmp_path / MARK).touch()
    assert ring(folder=tmp_path).is_lost
    assert not ring(key, folder=tmp_path).is_lost


# -- the signature of Ollama's command --------------------------------------------------------------


def signed(header: str, query: str, method: str = "POST", path: str = "/api/show") -> Any:
    return presented({"HTTP_AUTHORIZATION": header, "QUERY_STRING": query}, method, path)


@pytest.fixture
def signing() -> KeyRing:
    return ring(stored(signer=SIGNER.public)[0])


def test_the_signature_of_a_known_vector_is_read_as_it_was_made() -> None:
    """RFC 8032's first key pair, and what it signs for one request."""
    assert SIGNER.public == "AAAAC3NzaC1lZDI1NTE5AAAAINdamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea"
    header = (
        "AAAAC3NzaC1lZDI1NTE5AAAAINdamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea:"
        "N/bnif2Kz2cWqeQJFn1kP2Yj4nB5g0pa99E33rkv4E6thXno+pNlnIPpFUBuls2oPw3dWnQ3H4A9zma3W8lsCQ=="
    )
    assert SIGNER.header("POST", "/api/show", 1700000000) == header
    given = signed(header, "ts=1700000000")
    assert isinstance(given, Signed)
    assert given.challenge == b"POST,/api/show?ts=1700000000"
    SIGNER.private.public_key().verify(given.signature, given.challenge)


@pytest.mark.parametrize("away_s", [0, -55, 55])
def test_a_registered_signer_is_recognised(signing: KeyRing, away_s: int) -> None:
    at_s = int(time.time()) + away_s
    assert signing.check(signed(SIGNER.header("POST", "/api/show", at_s), f"ts={at_s}"), HERE) is not None


@pytest.mark.parametrize("away_s", [-65, 65, -86400])
def test_a_signature_is_good_for_a_minute_only(signing: KeyRing, away_s: int) -> None:
    at_s = int(time.time()) + away_s
    assert signing.check(signed(SIGNER.header("POST", "/api/show", at_s), f"ts={at_s}"), HERE) is None


def test_a_signature_is_for_one_request_alone(signing: KeyRing) -> None:
    at_s = int(time.time())
    header = SIGNER.header("POST", "/api/show", at_s)
    assert signing.check(signed(header, f"ts={at_s}", method="GET"), HERE) is None
    assert signing.check(signed(header, f"ts={at_s}", path="/api/delete"), HERE) is None
    assert signing.check(signed(header, f"ts={at_s + 1}"), HERE) is None
    assert signing.check(signed(header, f"ts={at_s}"), HERE) is not None


def test_a_signer_that_nobody_registered_is_nobody(signing: KeyRing) -> None:
    at_s = int(time.time())
    other = Signer(bytes(32))
    assert signing.check(signed(other.header("POST", "/api/show", at_s), f"ts={at_s}"), HERE) is None
    # Nor is one who says to be the registered one.
    forged = f"{SIGNER.public}:{other.header('POST', '/api/show', at_s).partition(':')[2]}"
    assert signing.check(signed(forged, f"ts={at_s}"), HERE) is None


def test_a_public_key_alone_opens_nothing(signing: KeyRing) -> None:
    assert signing.check(SIGNER.public, HERE) is None
    assert signing.check(signed(f"{SIGNER.public}:{base64.b64encode(bytes(64)).decode()}", "ts=1"), HERE) is None


def test_a_signature_is_bound_to_the_end_and_the_network_of_its_key() -> None:
    at_s = int(time.time())
    given = signed(SIGNER.header("POST", "/api/show", at_s), f"ts={at_s}")
    assert ring(stored(signer=SIGNER.public, revoked_at=NOW - 1)[0]).check(given, HERE) is None
    assert ring(stored(signer=SIGNER.public, networks=("10.0.0.0/8",))[0]).check(given, HERE) is None


def test_a_signer_that_was_registered_again_counts_for_its_valid_key() -> None:
    """Whatever the order in which the registry lists them."""
    old = stored(signer=SIGNER.public, revoked_at=NOW - 1)[0]
    new = stored(signer=SIGNER.public)[0]
    at_s = int(time.time())
    given = signed(SIGNER.header("POST", "/api/show", at_s), f"ts={at_s}")
    for keys in ((old, new), (new, old)):
        found = ring(*keys).check(given, HERE)
        assert found is not None
        assert found.key_id == new.id


@pytest.mark.parametrize("text", [SIGNER.line, f"{SIGNER.line} me@here\n", SIGNER.public, f" {SIGNER.public}\n"])
def test_a_public_key_is_taken_as_a_file_has_it(text: str) -> None:
    assert public_key(text) == SIGNER.public


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "ssh-ed25519",
        "ssh-ed25519 AAAA",
        SIGNER.public[:-4],
        "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQC=",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n-----END OPENSSH PRIVATE KEY-----",
    ],
)
def test_what_is_no_ed25519_public_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected the public key of an ed25519 pair"):
        public_key(text)
