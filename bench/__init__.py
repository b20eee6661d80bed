"""Measurements of Caravan, each as a ratio to a baseline of the same run: `python -m bench`."""
