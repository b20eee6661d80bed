"""Backends, what was last learned of them, and who may write it."""

from sqlite_utils import Database


def migrate(db: Database) -> None:
    """Create all tables of the first version."""
    db.table("backends").create(
        {
            "id": int,
            "name": str,
            "url": str,
            "priority": int,
            "place": int,
            "slots": int,
            "kind": str,
            "cloud": int,
            "origin": str,
            "draining": int,
            "headers": str,
            "auth_token": str,
        },
        pk="id",
        not_null={"name", "url", "place", "kind", "origin", "draining", "headers"},
        defaults={"kind": "ollama", "draining": 0, "headers": "{}"},
    )
    db.table("backends").create_index(["name"], unique=True)
    db.table("health").create(
        {
            "backend_id": int,
            "state": str,
            "since": float,
            "version": str,
            "cloud_disabled": int,
            "latency_s": float,
            "error": str,
        },
        pk="backend_id",
        not_null={"state", "since"},
        foreign_keys=[("backend_id", "backends", "id")],
    )
    db.table("models").create(
        {"backend_id": int, "canonical": str, "name": str, "digest": str, "item": str},
        pk=("backend_id", "canonical"),
        not_null={"name", "digest", "item"},
        foreign_keys=[("backend_id", "backends", "id")],
    )
    db.table("loaded").create(
        {"backend_id": int, "canonical": str, "item": str},
        pk=("backend_id", "canonical"),
        not_null={"item"},
        foreign_keys=[("backend_id", "backends", "id")],
    )
    # One row for each part of a Fleet: a worker rebuilds the part whose number moved.
    db.table("generations").create({"part": str, "number": int}, pk="part", not_null={"number"})
    db.table("generations").insert_all([{"part": "catalogue", "number": 0}, {"part": "volatile", "number": 0}])
    # beat_s is CLOCK_MONOTONIC: the same for all processes of a machine, deaf to clock jumps.
    db.table("roles").create(
        {"role": str, "epoch": int, "holder": str, "beat_s": float, "rounds": int},
        pk="role",
        not_null={"epoch", "holder", "beat_s", "rounds"},
    )
    db.table("asked").create({"key": str, "name": str, "asked_at": float}, pk="key", not_null={"name", "asked_at"})
