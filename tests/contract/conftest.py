"""Fixtures of the contract tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from proxy_app.store.registry import Registry


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """An empty one of this version, in `tmp_path`."""
    with closing(Registry(tmp_path)) as opened:
        opened.migrate()
        yield opened
