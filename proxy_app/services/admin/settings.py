"""The settings as they hold, and where each came from; secrets are never told."""

from __future__ import annotations

from dataclasses import Field, fields
from typing import Any, cast
from urllib.parse import urlsplit

from proxy_app.services.admin.shapes import SettingsView, SettingView
from proxy_app.settings import BackendSettings, Settings, origins
from proxy_app.settings.table import GROUPS

HIDDEN = "(set, hidden)"


def view(settings: Settings) -> SettingsView:
    """All of them, in the order of docs/settings.md."""
    came = origins()
    specs = [spec for group in GROUPS for spec in fields(group)]
    return SettingsView(settings=[_one(settings, spec, came[spec.metadata["env"]]) for spec in specs])


def _one(settings: Settings, spec: Field[Any], origin: str) -> SettingView:
    about = spec.metadata
    return SettingView(
        name=about["env"],
        value=_shown(getattr(settings, spec.name), is_secret=about["secret"]),
        origin=cast(Any, origin),
        unit=about["unit"],
        help=about["help"],
        is_secret=about["secret"],
    )


def _shown(value: Any, *, is_secret: bool) -> str:
    if value is None or value in ((), ""):
        return ""
    if is_secret and not isinstance(value, tuple):
        return _without_password(value) if isinstance(value, str) and "://" in value else HIDDEN
    if isinstance(value, tuple):
        return ", ".join(_name(one) for one in value)
    if isinstance(value, bool):
        return "1" if value else "0"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _name(one: Any) -> str:
    """An entry of a list; of a backend never its token."""
    return f"{one.name}={one.url}" if isinstance(one, BackendSettings) else str(one)


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"...@{host}" if "@" in parts.netloc else host, query="").geturl()
