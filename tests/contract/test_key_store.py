"""The keys in the registry: what is stored, what moves the number that workers look at, who may read the files."""

from __future__ import annotations

import sqlite3
import stat
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from proxy_app.dialects.credentials import digest
from proxy_app.domain import Scope
from proxy_app.errors import RegistryAway
from proxy_app.services import key_admin
from proxy_app.services.key_admin import KeyProblem, Wish
from proxy_app.services.setup import MARK
from proxy_app.settings import Settings, load
from proxy_app.store.keys import KeyStore, StoredKey
from proxy_app.store.registry import FILE, Registry
from tests.keys import Signer

FULL = StoredKey(
    id="abcdefgh",
    label="Grüße: 'x'; --",
    scopes=("infer", "read"),
    created_at=1700000000.5,
    models=("llama3*", "me/*"),
    networks=("10.0.0.0/8", "2001:db8::/32"),
    signer="AAAA",
    expires_at=1800000000.0,
    revoked_at=None,
    replaces="hgfedcba",
    used_at=1700000001.0,
    digest="d" * 64,
)
PLAIN = StoredKey("bcdefghj", "plain", ("read",), 1700000001.0, digest="e" * 64)


@pytest.fixture
def store(registry: Registry) -> KeyStore:
    return KeyStore(registry)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load({"DATA_DIR": str(tmp_path)}, None)


def test_a_key_is_stored_as_it_is(store: KeyStore) -> None:
    for key in (PLAIN, FULL):
        store.add(key)
    assert store.all() == (FULL, PLAIN)


def test_a_key_does_not_print_its_hash() -> None:
    assert FULL.digest not in repr(FULL)


def test_one_id_is_given_once(store: KeyStore) -> None:
    store.add(FULL)
    with pytest.raises(RegistryAway):
        store.add(replace(FULL, label="other"))
    assert store.all() == (FULL,)


def test_a_key_is_found_by_its_id_before_any_label(store: KeyStore) -> None:
    store.add(FULL)
    store.add(replace(PLAIN, label=FULL.id))
    assert store.find(FULL.id) == [FULL]
    assert store.find(FULL.label) == [FULL]
    assert store.find("nobody") == []


def test_the_number_moves_with_every_change_and_with_nothing_else(store: KeyStore, tmp_path: Path) -> None:
    seen = [store.number()]
    store.add(FULL)
    seen.append(store.number())
    store.end([FULL.id], 1750000000.0)
    seen.append(store.number())
    assert seen == sorted(set(seen))
    store.note_used({FULL.id: 1760000000.0})
    assert store.number() == seen[-1]
    with closing(Registry(tmp_path)) as other:
        assert KeyStore(other).number() == seen[-1]


def test_another_connection_hears_of_a_change(store: KeyStore, tmp_path: Path) -> None:
    with closing(Registry(tmp_path)) as other:
        before = other.data_version()
        store.add(FULL)
        assert other.data_version() != before
        assert KeyStore(other).all() == (FULL,)


def test_an_end_is_brought_forward_and_never_put_off(store: KeyStore) -> None:
    store.add(FULL)
    for at, wanted in ((300.0, 300.0), (400.0, 300.0), (200.0, 200.0)):
        store.end([FULL.id], at)
        assert store.all()[0].revoked_at == wanted


def test_the_last_use_only_moves_on(store: KeyStore) -> None:
    store.add(PLAIN)
    for at, wanted in ((300.0, 300.0), (200.0, 300.0), (400.0, 400.0)):
        store.note_used({PLAIN.id: at, "nobody": 1.0})
        assert store.all()[0].used_at == wanted


@pytest.mark.parametrize(
    ("expires", "revoked", "valid"),
    [(None, None, True), (11, None, True), (10, None, False), (None, 11, True), (None, 10, False), (20, 5, False)],
)
def test_a_key_is_valid_until_its_first_end(expires: float | None, revoked: float | None, valid: bool) -> None:
    assert replace(PLAIN, expires_at=expires, revoked_at=revoked).is_valid(10) is valid


def test_without_the_table_the_keys_are_away(tmp_path: Path) -> None:
    with closing(Registry(tmp_path)) as registry:
        store = KeyStore(registry)
        for call in (store.number, store.all, lambda: store.add(FULL)):
            with pytest.raises(RegistryAway):
                call()


def test_while_somebody_else_writes_the_keys_are_read_and_not_changed(store: KeyStore, tmp_path: Path) -> None:
    store.add(FULL)
    with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert store.all() == (FULL,)
        with pytest.raises(RegistryAway):
            store.add(PLAIN)
        other.execute("ROLLBACK")
    store.add(PLAIN)
    assert len(store.all()) == 2


# -- making, ending, rotating -----------------------------------------------------------------------


def test_the_secret_of_a_key_is_stored_nowhere(settings: Settings, tmp_path: Path) -> None:
    made = key_admin.create(settings, Wish("me"))
    secret = made.text.partition(made.stored.id)[2].strip("_")
    assert made.stored.digest == digest(made.text)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {FILE, MARK}
    for path in files:
        assert secret.encode() not in path.read_bytes(), path
    assert secret not in repr(made)


def test_what_knows_of_keys_is_for_its_owner_alone(settings: Settings, tmp_path: Path) -> None:
    key_admin.create(settings, Wish("me"))
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


@pytest.mark.parametrize("scopes", [("infer",), ("read", "infer", "read"), ("admin", "metrics", "manage")])
def test_a_key_is_what_was_wished_for(settings: Settings, scopes: tuple[Scope, ...]) -> None:
    wish = Wish("  me ", scopes, ("Tiny",), ("10.1.2.3/8", "::1"), 60.0, Signer().line)
    made = key_admin.create(settings, wish).stored
    assert (made.label, made.scopes, made.models) == ("me", tuple(sorted(set(scopes))), ("Tiny",))
    assert made.networks == ("10.0.0.0/8", "::1/128")
    assert made.expires_at == made.created_at + 60
    assert made.signer == Signer().public
    assert key_admin.all_keys(settings) == (made,)


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        (Wish(""), "label"),
        (Wish("   "), "label"),
        (Wish("x" * 201), "label"),
        (Wish("a\nb"), "label"),
        (Wish("a\x1b[31m"), "label"),
        (Wish("me", networks=("10.0.0.0/33",)), "is no network"),
        (Wish("me", networks=("here",)), "is no network"),
        (Wish("me", signer="ssh-rsa AAAA"), "ed25519"),
        (Wish("me", signer=""), "ed25519"),
    ],
)
def test_what_makes_no_sense_is_told_and_nothing_is_stored(settings: Settings, wish: Wish, why: str) -> None:
    with pytest.raises(KeyProblem, match=why):
        key_admin.create(settings, wish)
    assert key_admin.all_keys(settings) == ()


def test_a_public_key_belongs_to_one_valid_key(settings: Settings) -> None:
    wish = Wish("me", signer=Signer().line)
    first = key_admin.create(settings, wish).stored
    with pytest.raises(KeyProblem, match="belongs to another key"):
        key_admin.create(settings, wish)
    key_admin.revoke(settings, first.id)
    assert key_admin.create(settings, wish).stored.signer == first.signer


def test_a_rotated_key_may_what_the_old_one_may_and_that_one_ends(settings: Settings) -> None:
    wish = Wish("me", ("read",), ("tiny",), ("10.0.0.0/8",), 600.0, limits="rpm=5,tpd=9")
    old = key_admin.create(settings, wish).stored
    made = key_admin.rotate(settings, "me", 60.0)
    new = made.stored
    assert made.text != old.id
    assert (new.scopes, new.models, new.networks, new.expires_at) == (
        old.scopes,
        old.models,
        old.networks,
        old.expires_at,
    )
    assert new.limits == "rpm=5,tpd=9"
    assert (new.replaces, new.revoked_at) == (old.id, None)
    ending = key_admin.find(settings, old.id)
    assert ending.revoked_at == new.created_at + 60
    assert new.digest != old.digest


def test_a_key_that_has_ended_is_not_rotated(settings: Settings) -> None:
    key_admin.create(settings, Wish("me"))
    key_admin.revoke(settings, "me")
    with pytest.raises(KeyProblem, match="has ended"):
        key_admin.rotate(settings, "me", 60.0)


def test_a_label_that_means_several_is_told_with_their_ids(settings: Settings) -> None:
    ids = [key_admin.create(settings, Wish("me")).stored.id for _ in range(2)]
    with pytest.raises(KeyProblem) as caught:
        key_admin.revoke(settings, "me")
    assert all(key_id in str(caught.value) for key_id in ids)
    with pytest.raises(KeyProblem, match="there is no key"):
        key_admin.find(settings, "you")


def test_a_second_revocation_does_not_put_the_first_one_off(settings: Settings) -> None:
    key_admin.create(settings, Wish("me"))
    first = key_admin.revoke(settings, "me")
    key_admin.revoke(settings, "me")
    assert first.revoked_at is not None
    found = key_admin.find(settings, "me").revoked_at
    assert found is not None
    assert found <= first.revoked_at


def test_the_first_key_leaves_its_mark(settings: Settings, tmp_path: Path) -> None:
    """A registry that has one without the other would open the door when it is lost."""
    assert key_admin.all_keys(settings) == ()
    assert not (tmp_path / MARK).exists()
    key_admin.create(settings, Wish("me"))
    assert (tmp_path / MARK).exists()
