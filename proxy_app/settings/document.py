"""`docs/settings.md`, generated from the table."""

from __future__ import annotations

from dataclasses import Field, fields
from typing import Any

from proxy_app.settings.table import GROUPS


def settings_doc() -> str:
    """`docs/settings.md`, from the table."""
    lines = [_TABLE_HEAD = "| setting | default | unit | meaning |\n|---|---|---|---|"
_DOC_HEAD = """# Settings

Generated from `proxy_app/settings/` by `make docs`; do not edit by hand.

Settings come from the environment and from a file `.env` in the working directory; the environment wins, and an
empty value counts as not set. A name that starts with `CARAVAN_` and is not listed here stops the start, as does any
wrong value; all problems are reported at once. A secret may stand in a file instead, which `NAME_FILE` names."""


def _doc_default(default: object) -> str:
    if default is None or default == ():
        return "none"
    if isinstance(default, bool):
        return "`1`" if default else "`0`"
    if isinstance(default, float):
        return f"`{default:g}`"
    return f"`{default}`"
