"""Processes that tests start: the product itself, Redis, a demo fleet."""
