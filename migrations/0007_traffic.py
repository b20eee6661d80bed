"""The last finished requests, and what happened in each minute."""

from sqlite_utils import Database


def migrate(db: Database) -> None:
    """Create `requests` and `minutes`; `w0` to `w40` count waits for a first byte, by their length."""
    requests = db.table("requests").create(
        {
            "number": int,
            "id": str,
            "request_id": str,
            "at": float,
            "route": str,
            "model": str,
            "key_id": str,
            "status": int,
            "outcome": str,
            "attempts": str,
            "first_byte_s": float,
            "total_s": float,
            "load_ms": int,
            "tokens_in": int,
            "tokens_out": int,
            "tokens_per_s": float,
            "explanation": str,
        },
        pk="number",
        not_null={"id", "at", "attempts"},
    )
    requests.create_index(["id"], unique=True)
    requests.create_index(["at"])
    sums = ("requests", "errors", "tokens_out", "timed_tokens", "out_ms", "loads", *(f"w{n}" for n in range(41)))
    db.table("minutes").create(
        {"minute": int, **dict.fromkeys(sums, int)}, pk="minute", not_null=set(sums), defaults=dict.fromkeys(sums, 0)
    )
