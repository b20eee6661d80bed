"""Reading the settings from `.env` and the environment."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from proxy_app.errors import ConfigError
from proxy_app.settings.table import Settings


def load(environ: Mapping[str, str] | None = None, dotenv: Path | None = Path(".env")) -> Settings:
    """Read the settings from `.env` and the environment, which wins.

    Raises:
        ConfigError: with all problems.
    """
    merged = {**_dotenv(dotenv), **(os.environ if environ is None else environ)}
    problems = _unknown_names(merged)
    values: dict[str, Any] = {}
    for spec in fields(Settings):
        try:
            raw = _raw(merged, spec)
            if raw is not None:
                values[spec.name] = spec.metadata["read"](raw)
        except OSError as exc:
            problems.append(f"{spec.metadata['env']}_FILE: {exc.filename} cannot be read: {exc.strerror}")
        except ValueError as exc:
            problems.append(f"{spec.metadata['env']}: {exc}")
    if problems:
        raise ConfigError(problems)
    return Settings(**values)


def origins(environ: Mapping[str, str] | None = None, dotenv: Path | None = Path(".env")) -> dict[str, str]:
    """Where each setting comes from, by its name in the environment: environment, .env, file or default."""
    real, written = os.environ if environ is None else environ, _dotenv(dotenv)
    found = {}
    for name in (spec.metadata["env"] for spec in fields(Settings)):
        places = (("environment", real, name), (".env", written, name))
        files = (("file", real, f"{name}_FILE"), ("file", written, f"{name}_FILE"))
        found[name] = next((place for place, values, key in (*places, *files) if values.get(key)), "default")
    return found


def check_exposure(settings: Settings, *, has_keys: bool) -> None:
    """Refuse to serve a public address to everybody unless that was said.

    Raises:
        ConfigError: the address is public, there is no key, and CARAVAN_ANONYMOUS is not set.
    """
    if settings.is_public and not (settings.anonymous or settings.admin_key or has_keys):
        raise ConfigError(
            [
                f"HOST: {settings.host} is a public address and anybody who reaches it could use the fleet. "
                "Make a key (`caravan keys create --label me --scope admin`, or CARAVAN_ADMIN_KEY), set "
                "CARAVAN_ANONYMOUS=1 if everybody may, or HOST=127.0.0.1 behind a proxy that checks who asks."
            ]
        )


def _dotenv(path: Path | None) -> dict[str, str]:
    if path is None or not path.is_file():
        return {}
    return {key: value for key, value in dotenv_values(path, interpolate=False).items() if value is not None}


def _unknown_names(environ: Mapping[str, str]) -> list[str]:
    known = {spec.metadata["env"] for spec in fields(Settings)}
    known |= {f"{spec.metadata['env']}_FILE" for spec in fields(Settings) if spec.metadata["secret"]}
    strange = sorted(name for name in environ if name not in known and _is_meant(name, known))
    return [f"{name}: no such setting{_did_you_mean(name, known)}" for name in strange]


def _is_meant(name: str, known: set[str]) -> bool:
    """Is it a name of ours, or all but one? Other software has OLLAMA_ names too."""
    almost = name.startswith("OLLAMA_") and difflib.get_close_matches(name, known, n=1, cutoff=0.93)
    return name.startswith("CARAVAN_") or bool(almost)


def _did_you_mean(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _raw(environ: Mapping[str, str], spec: Field[Any]) -> str | None:
    """The setting's text; empty counts as unset, a secret may stand in the file that NAME_FILE names."""
    name = spec.metadata["env"]
    raw = environ.get(name, "").strip()
    path = environ.get(f"{name}_FILE", "").strip() if spec.metadata["secret"] else ""
    if raw and path:
        raise ValueError(f"set either {name} or {name}_FILE, not both")
    if path:
        raw = Path(path).read_text().strip()
    return raw or None
