"""Sessions of operators, and what changed when."""

from sqlite_utils import Database


def migrate(db: Database) -> None:
    """Create `sessions` (what is stored of a token is its hash) and `events`."""
    db.table("sessions").create(
        {"token": str, "key_id": str, "mark": str, "created_at": float, "seen_at": float},
        pk="token",
        not_null={"key_id", "mark", "created_at", "seen_at"},
    )
    # The ids of events that were forgotten are not given away again: pages go on from an id.
    db.execute(
        "CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, kind TEXT NOT NULL, "
        "level TEXT NOT NULL, who TEXT NOT NULL, subject TEXT NOT NULL, text TEXT NOT NULL)"
    )
