"""`docs/settings.md`, generated from the table."""

from __future__ import annotations

from dataclasses import Field, fields
from typing import Any

from proxy_app.settings.table import GROUPS

_TABLE_HEAD = "| setting | default | unit | meaning |\n|---|---|---|---|"
_DOC_HEAD = """# Settings

Generated from `proxy_app/settings/` by `make docs`; do not edit by hand.

Settings come from the environment and from a file `.env` in the working directory; the environment wins, and an
empty value counts as not set. A name that starts with `CARAVAN_` and is not listed here stops the start, as does any
wrong value; all problems are reported at once. A secret may stand in a file instead, which `NAME_FILE` names."""


def settings_doc() -> str:
    """`docs/settings.md`, from the table."""
    lines = [_DOC_HEAD]
    for group in GROUPS:
        lines.append(f"\n## {(group.__doc__ or '').rstrip('.')}\n\n{_TABLE_HEAD}")
        lines += [_row(spec) for spec in fields(group)]
    return "\n".join(lines) + "\n"


def _row(spec: Field[Any]) -> str:
    about = spec.metadata
    name = f"`{about['env']}`" + (f" or `{about['env']}_FILE`" if about["secret"] else "")
    return f"| {name} | {_doc_default(spec.default)} | {about['unit']} | {about['help'].replace('|', '&#124;')} |"


def _doc_default(default: object) -> str:
    if default is None or default == ():
        return "none"
    if isinstance(default, tuple):
        return f"`{','.join(map(str, default))}`"
    if isinstance(default, bool):
        return "`1`" if default else "`0`"
    if isinstance(default, float):
        return f"`{default:g}`"
    return f"`{default}`"
