"""A working directory for processes under test, and Caravan's commands run in it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from conformance.fakes.ollama import FakeOllama
from tests.fakes.procs import ROOT, Process, free_port

# A command that hangs fails its test after this long, in seconds.
RUN_S = 30
# And one whose processes outlive it, after this long.
GONE_S = 5.0
# Everything that a checkout needs to serve; not a developer's `.env` and `data/`.
PARTS = ("Procfile", "gunicorn.conf.py", "migrations", "proxy_app", "wsgi.py")


def checkout_view(folder: Path) -> Path:
    """Make a folder that looks like the checkout, without a developer's `.env` and `data/`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PARTS:
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    return folder


def fleet_of(fakes: Iterable[FakeOllama]) -> dict[str, str]:
    """The environment for these fakes, with the polls as shipped."""
    return {"OLLAMA_BACKENDS": ",".join(f"{fake.name}={fake.url}" for fake in fakes)}


class Started(Process):
    """A process whose end is no subject of its test: at the end of its `with` block it is killed, not asked.

    What it started dies with it, however it ended; `tests/process/test_up_stop.py` sees to that.
    """

    def destroy(self) -> None:
        if self.alive:
            self.kill9()
            self.wait()
            # Then nothing is left to wait for: whoever lost its parent may stay in the table until init reaps it.
            self.assert_all_gone(GONE_S)
        super().destroy()


def up(env: Mapping[str, str], folder: Path) -> Process:
    """`caravan up`, not started, in a view of the checkout at `folder/app` with its data at `folder/data`."""
    return _serving(["caravan", "up"], env, folder)


def server(env: Mapping[str, str], folder: Path) -> Process:
    """`gunicorn wsgi:app`, likewise."""
    return _serving(["gunicorn", "wsgi:app"], env, folder)


def _serving(words: Sequence[str], env: Mapping[str, str], folder: Path) -> Process:
    port = int(env.get("PORT") or free_port())
    given = {"PORT": str(port), "DATA_DIR": str(folder / "data"), **env}
    return Started(words, given, folder, port, checkout_view(folder / "app"))


def command(env: Mapping[str, str], folder: Path, *words: str) -> Process:
    """Any other `caravan` command, likewise."""
    given = {"DATA_DIR": str(folder / "data"), **env}
    return Process(["caravan", *words], given, folder, cwd=checkout_view(folder / "app"))


def run(env: Mapping[str, str], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a `caravan` command to its end, likewise, with its two streams apart."""
    process = command(env, folder, *words)
    return subprocess.run(
        process.command, cwd=process.cwd, env=process.env, capture_output=True, text=True, timeout=RUN_S, check=False
    )
