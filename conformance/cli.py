"""`caravan conformance`: the suite against any gateway."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from conformance.fakes.ollama import FakeOllama
    from conformance.suite import Verdict

BACKENDS = ("127.0.0.1:11601", "127.0.0.1:11602")
KEPT, BROKEN, UNUSABLE = 0, 1, 2


@click.command()
@click.argument("url", required=False)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="HOST:PORT",
    help=f"Where the suite listens with one of its two backends; give it twice. Default: {' and '.join(BACKENDS)}.",
)
@click.option(
    "--only", "patterns", multiple=True, metavar="GLOB", help="Only these rows or groups, such as 'endings/*'."
)
@click.option(
    "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Sent with every request, such as a key."
)
@click.option(
    "--wait", "wait_s", default=30.0, show_default=True, help="Seconds until the gateway must see the backends."
)
@click.option(
    "--patience",
    "patience_s",
    default=15.0,
    show_default=True,
    help="Seconds in which the gateway must use a backend again that came back.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--list", "listed", is_flag=True, help="Only list the rows and what they promise.")
def conformance(
    url: str | None,
    backends: Sequence[str],
    patterns: Sequence[str],
    headers: Sequence[str],
    wait_s: float,
    patience_s: float,
    as_json: bool,
    listed: bool,
) -> None:
    """Try a gateway at URL for fidelity and for honesty under failure.

    The gateway, any gateway, must be pointed at the suite's two scripted Ollama servers before. The exit code is 0
    where every promise is kept, else 1.
    """
    # Imported here: every other command of the program would wait for it.
    from conformance import report
    from conformance.suite import NotReady, Suite, chosen

    rows = chosen(patterns)
    if not rows:
        raise click.UsageError(f"no row matches {', '.join(patterns)}; --list shows them")
    if listed:
        click.echo(report.listing(rows))
        return
    pair = (backends or BACKENDS)[:3]
    if url is None or not url.startswith("http://") or len(pair) != 2:
        raise click.UsageError("the suite needs the URL of a gateway (http://HOST:PORT) and two times --backend")
    with ExitStack() as stack:
        fakes = (started(stack, "a", pair[0]), started(stack, "b", pair[1]))
        suite = Suite(url, fakes, parse_headers(headers), patience_s)
        click.echo(f"waiting for {url} to use both {pair[0]} and {pair[1]}", err=True)
        try:
            suite.wait_ready(wait_s)
        except NotReady as error:
            click.echo(f"caravan: not ready after {wait_s:g} s: {error}", err=True)
            sys.exit(UNUSABLE)
        verdicts = suite.run(rows, quiet if as_json else lambda verdict: click.echo(report.line(verdict)))
    click.echo(report.as_json(verdicts) if as_json else report.summary(verdicts))
    sys.exit(KEPT if all(verdict.kept for verdict in verdicts) else BROKEN)


def quiet(verdict: Verdict) -> None:
    """Say nothing until the end."""


def started(stack: ExitStack, name: str, address: str) -> FakeOllama:
    from conformance.site import backend

    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise click.UsageError(f"--backend must be HOST:PORT, not {address}")
    try:
        return stack.enter_context(backend(name, host, int(port)))
    except OSError as error:
        raise click.UsageError(f"cannot listen on {address}: {error.strerror}") from None


def parse_headers(given: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition(":") for text in given]
    if any(not colon for _, colon, _ in pairs):
        raise click.UsageError("--header must be 'NAME: VALUE'")
    return {name.strip(): value.strip() for name, _, value in pairs}
