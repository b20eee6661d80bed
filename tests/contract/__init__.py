"""One suite over several implementations, and over recorded answers."""
