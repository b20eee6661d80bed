"""A working directory for processes under test."""

from __future__ import annotations

from pathlib import Path

from tests.fakes.procs import ROOT


def checkout_view(folder: Path) -> Path:
    """Make a folder that looks like the checkout, without a developer's `.env` and `data/`."""
    folder.mkdir(parents=True)
    for name in ("Procfile", "gunicorn.conf.py", "migrations", "proxy_app", "wsgi.py"):
        (folder / name).symlink_to(ROOT / name)
    return folder
