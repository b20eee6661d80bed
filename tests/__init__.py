"""Tests of Caravan; see CONTRIBUTING.md for what belongs into which folder."""
