"""The only Redis and SQLite code."""
