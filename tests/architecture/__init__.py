"""Rules of the house and of the repository."""
