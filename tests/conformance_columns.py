"""The conformance suite against Caravan and nginx, side by side (`make conformance`)."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from conformance import report
from conformance.fakes.ollama import FakeOllama
from conformance.row import Row
from conformance.site import backend
from conformance.suite import Suite, Verdict, chosen
from tests.fakes.procs import ROOT, Process, caravan, free_port, gunicorn
from tests.product import environment

# Debian puts it where only root's PATH looks.
NGINX = shutil.which("nginx", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/local/sbin")
DOC = ROOT / "docs" / "conformance.md"
BEGIN, END = "<!-- columns: written by `make conformance` -->\n", "<!-- end of columns -->\n"
READY_S = 30.0
# Far more than either needs to take a backend back, in seconds.
PATIENCE_S = 12.0
# As shipped, but for what the suite would only wait for: polls, and how long a silent client may stay.
QUICKER = {"CARAVAN_KEEPALIVE": "3", "CARAVAN_CLIENT_TIMEOUT": "3"}

Pair = tuple[FakeOllama, FakeOllama]
Gateway = Callable[[Pair, Path], AbstractContextManager[str]]


@contextmanager
def caravan_gateway(pair: Pair, folder: Path) -> Iterator[str]:
    """Caravan as its Procfile starts it: refresher and gunicorn."""
    env = environment(pair, **QUICKER)
    with caravan(env, folder, "refresh"), gunicorn(env, folder) as process:
        yield process.wait_ready().url


@contextmanager
def nginx_gateway(pair: Pair, folder: Path, repeats: bool = False) -> Iterator[str]:
    """Debian's nginx with conformance/nginx.conf; only ports and places are others.

    Args:
        repeats: with the line that the file has as a comment.
    """
    assert NGINX is not None, "nginx is not installed (Debian: apt install nginx)"
    port = free_port()
    changes = {"# proxy_next_upstream": "proxy_next_upstream"} if repeats else {}
    changes |= {
        "127.0.0.1:11600": f"127.0.0.1:{port}",
        "127.0.0.1:11601": f"127.0.0.1:{pair[0].port}",
        "127.0.0.1:11602": f"127.0.0.1:{pair[1].port}",
        "/tmp/conformance-nginx": f"{folder}/nginx",
    }
    lines = (ROOT / "conformance" / "nginx.conf").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    for old, new in changes.items():
        assert old in text, f"conformance/nginx.conf no longer says {old}"
        text = text.replace(old, new)
    conf = folder / "nginx.conf"
    conf.write_text(text + "\n")
    command = [NGINX, "-e", str(folder / "error.log"), "-c", str(conf), "-g", "daemon off;"]
    with Process(command, {}, folder, port) as process:
        yield process.wait_ready("/api/version").url


GATEWAYS: dict[str, Gateway] = {
    "Caravan": caravan_gateway,
    "nginx": nginx_gateway,
    "nginx, repeating": partial(nginx_gateway, repeats=True),
}


def column(gateway: Gateway, rows: Sequence[Row], folder: Path) -> list[Verdict]:
    """Run rows against one gateway, in front of backends of its own."""
    with backend("a") as a, backend("b") as b, gateway((a, b), folder) as url:
        suite = Suite(url, (a, b), patience_s=PATIENCE_S)
        suite.wait_ready(READY_S)
        return suite.run(rows)


@contextmanager
def world_readable_folder() -> Iterator[Path]:
    """Started by root, nginx's workers are another user."""
    folder = Path(tempfile.mkdtemp(prefix="caravan-conformance-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


class Column(threading.Thread):
    """One gateway's column, beside the others: most of a row is waiting."""

    def __init__(self, name: str, rows: Sequence[Row]) -> None:
        super().__init__(name=f"column {name}")
        self._rows = rows
        self.found: list[Verdict] = []
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            with world_readable_folder() as folder:
                self.found = column(GATEWAYS[self.name.removeprefix("column ")], self._rows, folder)
        except Exception as error:  # the caller's thread raises it
            self.error = error


def columns(names: Sequence[str], rows: Sequence[Row]) -> dict[str, list[Verdict]]:
    """Run the same rows against several gateways at the same time."""
    running = {name: Column(name, rows) for name in names}
    for each in running.values():
        each.start()
    for each in running.values():
        each.join()
    for each in running.values():
        if each.error is not None:
            raise each.error
    return {name: each.found for name, each in running.items()}


def with_columns(page: str, table: str) -> str:
    """A page with the table between its markers."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"


def main(patterns: Sequence[str]) -> int:
    """Run all columns, print what was not kept, and write the page; returns 1 where Caravan broke a promise.

    With patterns, only these rows are run, and nothing is written.
    """
    found = columns(list(GATEWAYS), chosen(patterns))
    for name, verdicts in found.items():
        print(f"\n{name}: {report.summary(verdicts)}")
        for verdict in verdicts:
            if not verdict.kept:
                print(report.line(verdict))
    if not patterns:
        DOC.write_text(with_columns(DOC.read_text(), report.columns(found)))
        print(f"\nwritten: {DOC.relative_to(ROOT)}")
    return 0 if all(verdict.kept for verdict in found["Caravan"]) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
