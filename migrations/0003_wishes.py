"""Polls that somebody waits for: after a change made through Caravan."""

from sqlite_utils import Database


def migrate(db: Database) -> None:
    """Create `wishes`: for each backend, how many polls were asked for and the last one that was made."""
    db.table("wishes").create(
        {"backend_id": int, "asked": int, "done": int},
        pk="backend_id",
        not_null={"asked", "done"},
        defaults={"done": 0},
        foreign_keys=[("backend_id", "backends", "id")],
    )
