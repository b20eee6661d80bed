"""Errors that are the fleet's, beside those of clients."""

from sqlite_utils import Database


def migrate(db: Database) -> None:
    """Add a column to `usage`; what was counted before has none."""
    db.table("usage").add_column("faults", int, not_null_default=0)
