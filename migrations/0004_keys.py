"""Keys, and the number that moves when they change."""

import secrets

from sqlite_utils import Database


def migrate(db: Database) -> None:
    """Create `keys`: what is stored of a secret is its hash."""
    db.table("keys").create(
        {
            "id": str,
            "hash": str,
            "label": str,
            "scopes": str,
            "models": str,
            "networks": str,
            "signer": str,
            "created_at": float,
            "expires_at": float,
            "revoked_at": float,
            "replaces": str,
            "used_at": float,
        },
        pk="id",
        not_null={"hash", "label", "scopes", "models", "networks", "created_at"},
    )
    db.table("generations").insert({"part": "keys", "number": 0})
    # Tells this file from another one that is put in its place and has come to the same numbers.
    db.execute(f"PRAGMA application_id = {secrets.randbelow(1 << 31)}")
