"""What the tests of keys share: key pairs, signatures, and every way to present a key."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from proxy_app.services import key_admin
from proxy_app.settings import Settings, load
from tests.process.checkout import run

# A published test vector (RFC 8032 §7.1, TEST 1), so that signatures are the same in every run.
SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
# 256 bits, for CARAVAN_ADMIN_KEY.
ADMIN = "5f3c9a1be07d48e2846af2c1d95b0e7734aa68fd10c2be59f786213d40ce95ab"
STRANGER = "cv_abcdefgh_" + "s" * 43


class Signer:
    """A key pair as Ollama's command has one, and what it signs."""

    def __init__(self, seed: bytes = SEED) -> None:
        self.private = Ed25519PrivateKey.from_private_bytes(seed)
        self.line = self.private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()

    @property
    def public(self) -> str:
        return self.line.split()[1]

    def header(self, method: str, path: str, at_s: int) -> str:
        """The value of Authorization (Ollama auth/auth.go, api/client.go:116-143, v0.33.0-rc2)."""
        signature = self.private.sign(f"{method},{path}?ts={at_s}".encode())
        return f"{self.public}:{base64.b64encode(signature).decode()}"

    def request(self, method: str, path: str, at_s: int | None = None) -> tuple[str, dict[str, str]]:
        """A target and its headers."""
        at_s = int(time.time()) if at_s is None else at_s
        return f"{path}?ts={at_s}", {"Authorization": self.header(method, path, at_s)}


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def ways(key: str) -> dict[str, dict[str, str]]:
    """Every header in which a key may come."""
    return {
        "bearer": {"Authorization": f"Bearer {key}"},
        "lower": {"Authorization": f"bearer {key}"},
        "x-api-key": {"X-API-Key": key},
        "password": {"Authorization": basic("me", key)},
        "user": {"Authorization": basic(key, "")},
    }


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def make_key(folder: Path, *words: str, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """`caravan keys create` for the data at `folder/data`; returns what it prints."""
    return keys(folder, "create", *(words or ("--label", "test")), env=env)


def keys(folder: Path, *words: str, env: Mapping[str, str] | None = None) -> Any:
    """`caravan keys ... --json`, likewise."""
    done = run(env or {}, folder, "keys", *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def new_key(folder: Path, label: str = "test", **about: Any) -> str:
    """A key in the data at `folder/data`, made without a process; `about` as `key_admin.Wish`."""
    return key_admin.create(_settings(folder), key_admin.Wish(label, **about)).text


def revoke(folder: Path, label: str) -> None:
    key_admin.revoke(_settings(folder), label)


def _settings(folder: Path) -> Settings:
    return load({"DATA_DIR": str(folder / "data")}, None)
