"""`caravan backends`: looking at the configured servers, and changing those that no environment names."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, TextIO

import click

from proxy_app import telemetry
from proxy_app.cli.output import as_json, show, table
from proxy_app.domain import Member
from proxy_app.errors import RequestError
from proxy_app.services import inspect
from proxy_app.services.admin.backends import BackendAdmin
from proxy_app.services.admin.events import EventBook
from proxy_app.services.admin.shapes import BackendChange, NewBackend
from proxy_app.services.desk import RegistryDesk
from proxy_app.services.fleet import build
from proxy_app.services.sightings import Sightings
from proxy_app.services.visibility import Visibility
from proxy_app.settings import Settings, load
from proxy_app.store.registry import Registry

WHO = "command line"
# A person waits for this.
BUSY_S = 5.0


@click.group()
def backends() -> None:
    """The configured servers."""


@backends.command()
@as_json
def probe(as_json: bool) -> None:
    """Ask every backend now: reachability, version, latency, models."""
    rows = [found.as_dict() for found in inspect.probe_all(_settings())]
    columns = ("name", "url", "state", "version", "latency_ms", "models", "loaded", "error")
    show(as_json, rows, lambda: table(columns, rows))
    sys.exit(any(row["state"] != "up" for row in rows))


@backends.command("list")
@as_json
def list_backends(as_json: bool) -> None:
    """All backends as they were last seen."""
    with _admin() as admin:
        rows = [_row(member) for member in admin.fleet().members]
    show(as_json, rows, lambda: table(tuple(_COLUMNS), rows))


@backends.command()
@click.argument("name")
@click.argument("url")
@click.option("--priority", type=int, help="Lower goes first; by default after all others.")
@click.option("--token-file", type=click.File(), help="Holds its token, sent as `Authorization: Bearer`; - is stdin.")
@click.option("--no-test", is_flag=True, help="Add it though it does not answer.")
def add(name: str, url: str, priority: int | None, token_file: TextIO | None, no_test: bool) -> None:
    """Add a backend, where it answers. It stays until it is removed; no restart is needed."""
    token = token_file.read().strip() if token_file else None
    order = NewBackend(name=name, url=url, priority=priority, auth_token=token, test=not no_test)
    with _admin() as admin:
        member = admin.add(order, WHO)
    click.echo(f"{name} is added, and {member.health.state}")


@backends.command()
@click.argument("name")
def drain(name: str) -> None:
    """Give a backend no new work; what runs there ends."""
    with _admin() as admin:
        admin.change(name, BackendChange(draining=True), WHO)
    click.echo(f"{name} gets no new work")


@backends.command()
@click.argument("name")
def undrain(name: str) -> None:
    """Give a backend work again."""
    with _admin() as admin:
        admin.change(name, BackendChange(draining=False), WHO)
    click.echo(f"{name} gets work again")


@backends.command()
@click.argument("name")
def remove(name: str) -> None:
    """Remove a backend that was added; one of OLLAMA_BACKENDS is removed there."""
    with _admin() as admin:
        admin.remove(name, WHO)
    click.echo(f"{name} is removed")


_COLUMNS = ("name", "url", "state", "version", "priority", "origin", "draining", "error")


def _row(member: Member) -> dict[str, Any]:
    found = {name: getattr(member.backend, name) for name in ("name", "url", "priority", "origin", "draining")}
    return {**found, "state": member.health.state, "version": member.health.version, "error": member.health.error}


@contextmanager
def _admin() -> Iterator[BackendAdmin]:
    """What changes backends; a refusal ends the command with its sentence."""
    settings = _settings()
    with closing(Registry(settings.data_dir, BUSY_S)) as registry:
        registry.migrate()
    desk = RegistryDesk(settings.data_dir, BUSY_S)
    visibility = Visibility(settings.data_dir, Sightings(settings.data_dir))
    fleet = lambda: build(desk.run(lambda registry: registry.snapshot(settings.fleet)))  # noqa: E731 - one line, one use
    with closing(desk), closing(visibility):
        try:
            yield BackendAdmin(settings, fleet, desk, visibility, EventBook(desk))
        except RequestError as error:
            raise click.ClickException(error.message) from None


def _settings() -> Settings:
    settings = load()
    telemetry.configure("error")
    return settings
