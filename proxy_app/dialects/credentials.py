"""What a client presents to show who it is: read from its request, and told apart from what others send there.

Source: RFC 6750 §2.1 (Bearer), RFC 7617 (Basic); Ollama auth/auth.go and api/client.go:116-143 (v0.33.0-rc2) for the
signed form of its command: `<public key>:<signature>`, both in base64, over `METHOD,<path>?ts=<unix seconds>`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PREFIX = "cv_"
# 32 random bytes: far above the 128 bits that make a fast hash right (OWASP ASVS 11.4).
SECRET_BYTES = 32
ID_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
_KEY = re.compile(r"cv_([a-z0-9]{8})_([A-Za-z0-9_-]{20,128})")
_SIGNED = re.compile(r"([A-Za-z0-9+/]{60,200}={0,2}):([A-Za-z0-9+/]{86}={0,2})")


@dataclass(frozen=True, slots=True)
class Signed:
    """The form of Ollama's own command. Args: key: its public key, base64. challenge: what it signed."""

    key: str
    signature: bytes
    challenge: bytes
    at_s: int


Presented = str | Signed | None
"""A token as it came, a signature, or nothing."""


def new_key() -> tuple[str, str]:
    """A new key's id and its whole text."""
    key_id = "".join(secrets.choice(ID_LETTERS) for _ in range(8))
    return key_id, f"{PREFIX}{key_id}_{secrets.token_urlsafe(SECRET_BYTES)}"


def key_id_of(token: str) -> str | None:
    """The id in a key's text; None where the text is none of ours."""
    match = _KEY.fullmatch(token)
    return match.group(1) if match else None


def digest(token: str) -> str:
    """What is stored of a key."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def presented(environ: Mapping[str, Any], method: str, path: str) -> Presented:
    """What the request presents: a key in its path, `X-Api-Key`, or one of the forms of `Authorization`."""
    token = str(environ.get("caravan.key") or environ.get("HTTP_X_API_KEY") or "").strip()
    header: str = environ.get("HTTP_AUTHORIZATION", "")
    # Some programs send a dummy in the one place and their key in the other.
    if token and (token.startswith(PREFIX) or not header):
        return token
    if not header:
        return None
    scheme, _, rest = header.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() == "basic":
        return _password(rest)
    return _signed(header, method, path, environ.get("QUERY_STRING", ""))


def _password(encoded: str) -> str:
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        return ""
    user, _, password = text.partition(":")
    # Some programs have room for one text only, and send it as the name.
    return password or user


def _signed(header: str, method: str, path: str, query: str) -> Presented:
    match = _SIGNED.fullmatch(header.strip())
    stamp = re.search(r"(?:^|&)ts=(\d{1,12})(?:&|$)", query)
    if not match or not stamp:
        return ""
    challenge = f"{method},{path}?ts={stamp.group(1)}".encode()
    return Signed(match.group(1), base64.b64decode(match.group(2) + "=="), challenge, int(stamp.group(1)))
