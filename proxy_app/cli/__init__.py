"""The `caravan` command."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable
from typing import Any

import click

from conformance.cli import conformance
from proxy_app import __version__, telemetry
from proxy_app.cli.backends import backends
from proxy_app.cli.keys import keys
from proxy_app.cli.output import as_json, show
from proxy_app.cli.usage import usage
from proxy_app.errors import ConfigError, RegistryAway
from proxy_app.services import inspect, private_redis
from proxy_app.services.processes import Child, Group, caravan_command, tethered
from proxy_app.services.refresher_process import RefresherProcess
from proxy_app.services.setup import ROOT, check_port_free, has_keys, open_registry, prepare_registry, start_lock
from proxy_app.settings import Settings, check_exposure, load

# How long `caravan up` watches for the first look at the backends before it says what it saw.
FIRST_LOOK_S = 10.0


@click.group()
@click.version_option(__version__)
def caravan() -> None:
    """One address for a whole fleet of Ollama servers."""


caravan.add_command(backends)
caravan.add_command(conformance)
caravan.add_command(keys)
caravan.add_command(usage)


def main() -> None:
    """Run the command; every failure is a sentence, and a traceback only in a bug's log line."""
    try:
        caravan()
    except ConfigError as error:
        for problem in error.problems:
            click.echo(f"caravan: {problem}", err=True)
        sys.exit(2)
    except RegistryAway as error:
        click.echo(f"caravan: {error}", err=True)
        sys.exit(1)


def _settings(log_level: str | None = None) -> Settings:
    settings = load()
    telemetry.configure(log_level or settings.log_level)
    return settings


def _quiet() -> Settings:
    """The settings of a command that looks: what it finds is its output, not its log."""
    return _settings("error")


# -- processes -------------------------------------------------------------------------------------


@caravan.command()
def up() -> None:
    """Run everything on this machine: a private Redis (without REDIS_URL), the refresher and the web workers."""
    settings = _settings()
    check_exposure(settings, has_keys=has_keys(settings))
    lock = start_lock(settings)
    check_port_free(settings)
    open_registry(settings)
    group = Group(_children(settings))
    # SIGHUP: the terminal was closed.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: group.stop())
    try:
        group.run(lambda: _greet(settings, group))
    finally:
        lock.free()


def _children(settings: Settings) -> list[Child]:
    server = None if settings.redis_url else private_redis.find_server()
    children = []
    if server:
        redis = tethered(private_redis.command(server, settings), signal.SIGTERM)
        children.append(Child("redis", redis, 1.0, before=lambda: private_redis.make_room(settings)))
    elif not settings.redis_url:
        click.echo(
            "caravan: no Redis found, going on without: caches are per worker. To get one: apt install redis-server",
            err=True,
        )
    if settings.poll_interval_s > 0:
        children.append(Child("refresher", caravan_command("refresh"), 2.0))
    # By their full paths: `caravan up` may be called from anywhere.
    places = ["-c", str(ROOT / "gunicorn.conf.py"), "--pythonpath", str(ROOT)]
    gunicorn = [sys.executable, "-m", "gunicorn", "wsgi:app", *places]
    children.append(Child("web", tethered(gunicorn), settings.grace_s + 2.0))
    return children


def _greet(settings: Settings, group: Group) -> None:
    """Say where Caravan is, and what it found behind it."""
    address = f"http://{settings.host}:{settings.port}"
    try:
        seen = inspect.first_look(settings, FIRST_LOOK_S, lambda: group.is_stopping)
    except RegistryAway as error:
        click.echo(f"Caravan serves on {address}, but {error}", err=True)
        return
    if not inspect.wait_listening(settings, FIRST_LOOK_S, lambda: group.is_stopping):
        return
    live = [member for member in seen.members if member.is_live]
    if live:
        click.echo(f"Caravan serves {len(seen.holders)} models of {len(live)} backends on {address}")
        return
    urls = ", ".join(backend.url for backend in settings.fleet)
    click.echo(
        f"Caravan serves on {address}, but no backend answers yet ({urls}): start Ollama there, or name your servers "
        "in .env (OLLAMA_BACKENDS), or play with `make demo`; the probing goes on."
    )


@caravan.command()
def migrate() -> None:
    """Bring the registry to this version."""
    applied = prepare_registry(_settings())
    click.echo(f"applied {', '.join(applied)}" if applied else "the registry is up to date")


@caravan.command()
@click.option("--once", is_flag=True, help="One round of polls, then exit (for cron).")
@click.option("--child", is_flag=True, hidden=True, help="Exit where another process has the role.")
def refresh(once: bool, child: bool) -> None:
    """Poll the backends and keep the registry and the cache up to date."""
    settings = _settings()
    if settings.poll_interval_s == 0 and not once:
        click.echo("CARAVAN_POLL_INTERVAL is 0: polling is off")
        return
    process = RefresherProcess(settings, waits=not (once or child))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: process.stop())
    if not (process.once() if once else process.run()):
        click.echo("another refresher is at work", err=True)


# -- looking ---------------------------------------------------------------------------------------


@caravan.command()
@as_json
def check(as_json: bool) -> None:
    """Check the settings, Redis, the registry and every backend; exit 1 where something needs attention."""
    try:
        settings = _quiet()
        check_exposure(settings, has_keys=has_keys(settings))
    except ConfigError as error:
        findings = [
            inspect.Finding("settings", problem, "fix it in the environment or in .env") for problem in error.problems
        ]
    else:
        findings = inspect.check(settings)
    show(as_json, [finding.as_dict() for finding in findings], lambda: _finding_lines(findings))
    sys.exit(any(finding.cure for finding in findings))


def _finding_lines(findings: Iterable[inspect.Finding]) -> Iterable[str]:
    for finding in findings:
        yield f"{'!!' if finding.cure else 'ok'}  {finding.subject}: {finding.found}"
        if finding.cure:
            yield f"    -> {finding.cure}"


@caravan.group()
def models() -> None:
    """What the fleet hosts."""


@models.command("list")
@as_json
def list_models(as_json: bool) -> None:
    """The models of each backend, as last seen, and what is cached of them."""
    found = inspect.list_models(_quiet())
    show(as_json, found, lambda: _model_lines(found))


def _model_lines(found: dict[str, Any]) -> Iterable[str]:
    for backend in found["backends"]:
        yield f"{backend['name']} ({backend['state']}, {len(backend['models'])} models)"
        yield from (f"  {model['name']:<40} {model['digest'][:12]}" for model in backend["models"])
    yield f"{found['union']} different models in all"
    cache = found["cache"]
    yield f"show cache: {cache['documents']} documents, {cache['bytes']} bytes" if cache else "show cache: no Redis"
