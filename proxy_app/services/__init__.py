"""Use cases in plain Python: what a view or a command asks for."""
