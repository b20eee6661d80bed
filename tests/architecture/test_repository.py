"""The repository as people find it: the files that no import and no request would ever test."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy_app.settings import load, read_backends

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("run", "dev")
TARGETS = {"run", "test", "install", "demo", "bench", "help"}
# Pins of the lock and what follows them: `name==1.2 ; marker \` and then only hashes.
PIN = re.compile(r"^([a-z0-9][a-z0-9-]*)==(\S+?)(?: ; .+)? \\$")
HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}(?: \\)?$")


def read(path: str) -> str:
    return (ROOT / path).read_text()


def project_files() -> list[Path]:
    """What git would carry: tracked files and new ones that nothing ignores."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout, so its files cannot be told from others")
    return [path for name in names.split("\0") if name and (path := ROOT / name).is_file()]


def lock_lines(name: str) -> list[str]:
    lines = read(f"requirements/{name}.txt").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def pins(name: str) -> dict[str, str]:
    found = (PIN.match(line) for line in lock_lines(name))
    return {match[1]: match[2] for match in found if match}


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def required_names(text: str) -> set[str]:
    lines = filter(None, (line.strip() for line in text.splitlines()))
    return {re.split(r"[<>=!~;\[ ]", line)[0].lower().replace("_", "-") for line in lines}


def test_files_speak_of_the_project_alone() -> None:
    """No home directory, no absolute path of one developer's machine."""
    # (/root/.ollama is where the Ollama image keeps its models.)
    foreign = re.compile(rb"/(?:home|Users|root|work)/(?!\.ollama)")
    guilty = [
        str(path.relative_to(ROOT))
        for path in project_files()
        if path != Path(__file__) and foreign.search(path.read_bytes())
    ]
    assert not guilty


def test_license_is_apache_2() -> None:
    text = read("LICENSE")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert setup_cfg()["metadata"]["license"] == "Apache-2.0"


def test_procfile_says_what_platforms_and_docs_rely_on() -> None:
    assert read("Procfile").splitlines() == [
        "release: caravan migrate",
        "web: HOST=0.0.0.0 gunicorn wsgi:app",
        "refresher: caravan refresh",
    ]


@pytest.mark.parametrize("name", LOCKS)
def test_lock_holds_pins_with_hashes_and_nothing_else(name: str) -> None:
    """No index, no link, no unpinned name: any mirror serves it, and any other file is refused."""
    strange = [line for line in lock_lines(name) if not (PIN.match(line) or HASH.match(line))]
    assert not strange
    assert "://" not in read(f"requirements/{name}.txt")


def test_dev_lock_is_the_run_lock_and_more() -> None:
    assert pins("run").items() <= pins("dev").items()


def test_lock_covers_everything_that_setup_cfg_asks_for() -> None:
    parser = setup_cfg()
    needed = required_names(parser["options"]["install_requires"])
    assert needed <= pins("run").keys()
    assert required_names(parser["options.extras_require"]["dev"]) <= pins("dev").keys()
    # `make install` builds without isolation, so the build's own need is in the lock.
    assert "setuptools" in pins("run")


def test_every_direct_dependency_says_why_it_is_there() -> None:
    parser = setup_cfg()
    needed = required_names(parser["options"]["install_requires"])
    needed |= required_names(parser["options.extras_require"]["dev"])
    explained = {name.lower() for name in re.findall(r"^\| `([^`]+)` \|", read("docs/dependencies.md"), re.M)}
    assert explained == needed | {"setuptools"}


def test_make_help_lists_the_public_targets() -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    env = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(
        [make, "--no-print-directory", "help"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    listed = {line.split()[1] for line in done.stdout.splitlines() if line.strip()}
    assert listed >= TARGETS


def test_server_replaces_makes_shell() -> None:
    """Else SIGTERM to make would stop at the shell between them."""
    recipes = re.findall(r"^(run|demo|bench):.*\n\t@(.*)$", read("Makefile"), re.M)
    assert {name for name, _ in recipes} == {"run", "demo", "bench"}
    assert all(recipe.startswith("exec ") for _, recipe in recipes)


def test_ci_runs_exactly_make_test() -> None:
    assert read(".ci/run").rstrip().splitlines()[-1] == "exec make test"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_example_settings_are_valid() -> None:
    """Also the lines that are commented out, each by itself."""
    assert [backend.name for backend in load({}, ROOT / ".env.example").fleet] == ["gpu1", "gpu2"]
    commented = re.findall(r"^# ([A-Z_]+)=(.+)$", read(".env.example"), re.M)
    assert commented
    for name, value in commented:
        if not name.endswith("_FILE"):
            load({name: value.strip("'")}, None)


def test_compose_file_has_a_fleet_and_a_health_check() -> None:
    services: dict[str, Any] = yaml.safe_load(read("deploy/compose.yaml"))["services"]
    caravan = services["caravan"]
    assert len(read_backends(caravan["environment"]["OLLAMA_BACKENDS"])) >= 2
    assert "/readyz" in caravan["healthcheck"]["test"][-1]
    load({key: str(value) for key, value in caravan["environment"].items()}, None)
    assert (ROOT / "deploy" / caravan["build"]["context"] / caravan["build"]["dockerfile"]).is_file()


def test_containerfile_copies_only_what_exists() -> None:
    copies = re.findall(r"^COPY (.+) \S+$", read("deploy/Containerfile"), re.M)
    missing = [name for line in copies for name in line.split() if not (ROOT / name).exists()]
    assert not missing


def test_links_between_documents_lead_somewhere() -> None:
    broken = []
    for page in [path for path in project_files() if path.suffix == ".md"]:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text()):
            if not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken


@pytest.fixture(scope="module")
def gunicorn_settings() -> dict[str, Any]:
    """The settings file in a process of its own: it patches the process that reads it."""
    if not (ROOT / "gunicorn.conf.py").exists():
        pytest.skip("gunicorn.conf.py does not exist yet")
    names = ["forwarder_headers", "http_parser", "control_socket_disable", "max_requests"]
    names += ["graceful_timeout", "keepalive"]
    program = (
        "import json, runpy, sys; conf = runpy.run_path('gunicorn.conf.py');"
        f"print(json.dumps({{n: str(conf[n]) for n in {names!r} if n in conf}}))"
    )
    env = {"PATH": os.environ.get("PATH", os.defpath), "OLLAMA_BACKENDS": "one=http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = yaml.safe_load(done.stdout.splitlines()[-1])
    return found


def test_gunicorn_takes_no_path_from_headers(gunicorn_settings: dict[str, Any]) -> None:
    """Else `SCRIPT_NAME: /api` parts the path that is checked from the one that is sent."""
    assert gunicorn_settings["forwarder_headers"] == ""


def test_gunicorn_parses_the_same_everywhere(gunicorn_settings: dict[str, Any]) -> None:
    """`auto` would take whatever C parser happens to be installed."""
    assert gunicorn_settings["http_parser"] == "python"


def test_gunicorn_has_no_side_door(gunicorn_settings: dict[str, Any]) -> None:
    assert gunicorn_settings["control_socket_disable"] == "True"


def test_gunicorn_never_recycles_a_worker_with_streams(gunicorn_settings: dict[str, Any]) -> None:
    assert gunicorn_settings.get("max_requests", "0") == "0"


def test_gunicorn_outlives_nginx_idle_connections(gunicorn_settings: dict[str, Any]) -> None:
    conf = read("deploy/nginx.conf")
    idle = re.search(r"upstream caravan \{.*?keepalive_timeout (\d+)s;", conf, re.S)
    assert idle is not None
    assert int(gunicorn_settings["keepalive"]) > int(idle[1])


def test_gunicorn_leaves_before_the_platform_kills(gunicorn_settings: dict[str, Any]) -> None:
    """Heroku, compose.yaml and the systemd unit give 30 s and more."""
    assert int(gunicorn_settings["graceful_timeout"]) < 30
