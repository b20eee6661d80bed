"""`caravan keys`: who may use the fleet."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from proxy_app.cli.output import as_json
from proxy_app.domain import Scope
from proxy_app.services import key_admin
from proxy_app.services.key_admin import Edit, KeyProblem, NewKey, Wish
from proxy_app.settings import Settings, load
from proxy_app.settings.readers import SCOPES
from proxy_app.store.keys import StoredKey
from proxy_app.store.redis import unix_now

T = TypeVar("T")

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Span(click.ParamType[float]):
    """A length of time such as 90d, 12h or 30m, in seconds; `never` is inf where it may be said."""

    name = "TIME"

    def __init__(self, or_never: bool = False) -> None:
        self._or_never = or_never

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if self._or_never and value == "never":
            return math.inf
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", str(value))
        if match is None:
            never = ", or never" if self._or_never else ""
            self.fail(f"{value!r}: expected a number and one of s, m, h, d, w, such as 90d{never}", param, ctx)
        return float(match.group(1)) * _UNITS[match.group(2)]


@click.group()
def keys() -> None:
    """API keys: make, list, end them."""


def _given(*names: str, **about: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """An option that may be given several times."""
    return click.option(*names, multiple=True, **about)


@keys.command()
@click.option("--label", required=True, help="Whose key it is, for people.")
@_given(
    "--scope", type=click.Choice(SCOPES), default=("infer", "read"), help="What it may do; infer and read if not given."
)
@_given("--model", metavar="GLOB", help="A model it may use, such as 'llama3*'; all if not given.")
@_given("--from", "networks", metavar="CIDR", help="From where it may be used; from everywhere if not given.")
@_given(
    "--limit",
    "limits",
    metavar="NAME=N",
    help="rpm, burst, concurrent, tpm, tpd (tokens), gpu (seconds a day), num_ctx, num_predict, keep_alive (seconds), "
    "images or body (bytes).",
)
@click.option("--expires", type=Span(), help="How long it is valid, such as 90d; for ever if not given.")
@click.option(
    "--signer",
    type=click.File(),
    help="A public key (~/.ollama/id_ed25519.pub) whose signatures count too: the ollama command with OLLAMA_AUTH=1.",
)
@as_json
def create(
    label: str, scope: tuple[Scope, ...], model: tuple[str, ...], networks: tuple[str, ...], as_json: bool, **rest: Any
) -> None:
    """Make a key and show it, once."""
    signer = rest["signer"].read() if rest["signer"] else None
    wish = Wish(label, scope, model, networks, rest["expires"], signer, " ".join(rest["limits"]))
    _show_new(_told(lambda settings: key_admin.create(settings, wish)), as_json)


@keys.command("list")
@as_json
def list_keys(as_json: bool) -> None:
    """All keys, without their secrets."""
    found = _told(key_admin.all_keys)
    if as_json:
        click.echo(json.dumps([_facts(key) for key in found], indent=2))
        return
    for key in found:
        models = " ".join(key.models) or "all models"
        click.echo(f"{key.id}  {_state(key):<9}  {','.join(key.scopes):<16}  {models:<24}  {key.label}")
    if not found:
        click.echo(
            "There are no keys: whoever reaches this machine itself may do everything. `caravan keys create --help`"
        )


@keys.command()
@click.argument("key")
@as_json
def show(key: str, as_json: bool) -> None:
    """One key, by its id or label."""
    _show(_told(lambda settings: key_admin.find(settings, key)), as_json)


@keys.command()
@click.argument("key")
@click.option("--label", help="Whose key it is, for people.")
@_given("--scope", type=click.Choice(SCOPES), help="What it may do.")
@_given("--model", metavar="GLOB", help="A model it may use.")
@click.option("--all-models", is_flag=True, help="It may use all models.")
@_given("--from", "networks", metavar="CIDR", help="From where it may be used.")
@click.option("--from-anywhere", is_flag=True, help="It may be used from everywhere.")
@_given("--limit", "limits", metavar="NAME=N", help="As for create; `none` for those of CARAVAN_LIMITS.")
@click.option("--expires", type=Span(or_never=True), help="How long it is valid from now on, such as 90d, or never.")
@as_json
def edit(key: str, scope: tuple[Scope, ...], as_json: bool, **given: Any) -> None:
    """Change a key; whoever has it keeps it. What is given takes the place of all that was there."""
    wanted = Edit(
        label=given["label"],
        scopes=scope or None,
        models=_none_or(given, "model", "all_models"),
        networks=_none_or(given, "networks", "from_anywhere"),
        limits=" ".join(given["limits"]) or None,
        lives_s=given["expires"],
    )
    if wanted == Edit():
        raise click.UsageError("nothing to change: name what, such as --limit rpm=60")
    _show(_told(lambda settings: key_admin.edit(settings, key, wanted)), as_json)


def _none_or(given: dict[str, Any], name: str, instead: str) -> tuple[str, ...] | None:
    """What a list becomes: what is given, nothing where the flag says so, None where it stays."""
    values: tuple[str, ...] = given[name]
    if values and given[instead]:
        raise click.UsageError(f"--{instead.replace('_', '-')} says the opposite of the others")
    return values or (() if given[instead] else None)


@keys.command()
@click.argument("key")
@as_json
def revoke(key: str, as_json: bool) -> None:
    """End a key now."""
    _show(_told(lambda settings: key_admin.revoke(settings, key)), as_json)


@keys.command()
@click.argument("key")
@click.option(
    "--overlap", "overlap_s", type=Span(), default="24h", show_default=True, help="How long the old key stays valid."
)
@as_json
def rotate(key: str, overlap_s: float, as_json: bool) -> None:
    """Make a key that may what another one may, and end that one after a while."""
    _show_new(_told(lambda settings: key_admin.rotate(settings, key, overlap_s)), as_json)


def _told(work: Callable[[Settings], T]) -> T:
    """Do the work; what cannot be done is one sentence."""
    try:
        return work(load())
    except KeyProblem as problem:
        click.echo(f"caravan: {problem}", err=True)
        sys.exit(1)


def _show_new(made: NewKey, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"key": made.text, **_facts(made.stored)}, indent=2))
        return
    click.echo(made.text)
    click.echo(f"This is the only time it is shown. Its id is {made.stored.id}.", err=True)


def _show(key: StoredKey, as_json: bool) -> None:
    facts = _facts(key)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        text = ", ".join(value) if isinstance(value, list) else value
        click.echo(f"{name:<11} {text or '-'}")


def _facts(key: StoredKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "label": key.label,
        "state": _state(key),
        "scopes": list(key.scopes),
        "models": list(key.models),
        "networks": list(key.networks),
        "limits": key.limits.split(),
        "signer": key.signer,
        "created_at": _time(key.created_at),
        "expires_at": _time(key.expires_at),
        "revoked_at": _time(key.revoked_at),
        "used_at": _time(key.used_at),
        "replaces": key.replaces,
    }


def _state(key: StoredKey) -> str:
    if key.is_valid(unix_now()):
        return "ending" if key.revoked_at else "valid"
    return "revoked" if key.revoked_at and key.revoked_at <= unix_now() else "expired"


def _time(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
