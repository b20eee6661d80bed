"""Faults of Caravan's own parts under load: Redis, the registry, its processes, and what the machine gives it."""
