"""Limits of keys, and what was used."""

from sqlite_utils import Database


def migrate(db: Database) -> None:
    """Add a column to `keys`, and create `usage`."""
    db.table("keys").add_column("limits", str)
    sums = ("requests", "errors", "tokens_in", "tokens_out", "gpu_ms", "load_ms", "estimated")
    db.table("usage").create(
        {"hour": int, "key_id": str, "model": str, "backend": str, **dict.fromkeys(sums, int)},
        pk=("hour", "key_id", "model", "backend"),
        not_null=set(sums),
        defaults=dict.fromkeys(sums, 0),
    )
