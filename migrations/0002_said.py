"""What a backend says of the cloud and recommends, for answers from memory."""

from sqlite_utils import Database


def migrate(db: Database) -> None:
    """Add two columns to `health`."""
    db.table("health").add_column("cloud_source", str)
    db.table("health").add_column("recommendations", str)
