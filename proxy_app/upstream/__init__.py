"""The only HTTP client code: pools, time limits, error mapping, streams."""
