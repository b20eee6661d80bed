"""gunicorn's settings; where they differ from its defaults, why.

Nothing that opens a connection or a file may be imported here: workers are forked from this process.
"""

# First of all: whatever is imported before this keeps blocking sockets.
from gevent import monkey

monkey.patch_all()

import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
from dataclasses import replace  # noqa: E402

from proxy_app.errors import ConfigError, RegistryTooNew  # noqa: E402
from proxy_app.services.setup import has_keys, open_registry, room_for_connections  # noqa: E402
from proxy_app.services.tether import tether  # noqa: E402
from proxy_app.settings import check_exposure, is_loopback, load  # noqa: E402

try:
    settings = load()
except ConfigError as error:
    for problem in error.problems:
        print(f"caravan: {problem}", file=sys.stderr)
    sys.exit(2)

host = f"[{settings.host}]" if ":" in settings.host else settings.host
bind = f"{host}:{settings.port}"
workers = settings.workers
worker_class = "proxy_app.web.worker.Worker"
worker_connections = room_for_connections()
# The idle time of client connections, and the time limit for request headers too.
keepalive = settings.keepalive_s
# The hub's heartbeat, not a limit for requests; a hub that is blocked this long is lost.
timeout = 60
graceful_timeout = settings.grace_s
# Recycling a worker would cut its streams.
max_requests = 0
# One set of parsing rules, whatever else is installed.
http_parser = "python"
# No path is rewritten by a header, even where FORWARDED_ALLOW_IPS is `*` (Heroku sets that).
forwarder_headers = ""
# Nor is the scheme: CARAVAN_TRUSTED_HOPS says whom to believe.
secure_scheme_headers = {}
# Its owner could reload or stop the server; several instances under one user would share it.
control_socket_disable = True
accesslog = None
loglevel = "warning"
logger_class = "proxy_app.web.worker.Logger"
if os.path.isdir("/dev/shm"):
    # The heartbeat file is touched every second: keep it off the disk.
    worker_tmp_dir = "/dev/shm"


def on_starting(server):
    """Set the registry up before there are workers; what only waiting can cure holds nobody up."""
    # `gunicorn -b` may name another address than HOST.
    _check_addresses(server.address)
    try:
        open_registry(settings)
    except RegistryTooNew as error:
        print(f"caravan: {error}", file=sys.stderr)
        sys.exit(1)


def when_ready(server):
    """Look at the real listeners too, before there is a worker: systemd and `-b fd://` hand over open ones."""
    _check_addresses(listener.getsockname() for listener in server.LISTENERS)


def _check_addresses(addresses):
    for address in addresses:
        if isinstance(address, tuple):
            _check_host(address[0])


def _check_host(host):
    try:
        check_exposure(replace(settings, host=host), has_keys=has_keys(settings))
    except ConfigError as error:
        print(f"caravan: {error}", file=sys.stderr)
        sys.exit(2)
    if not is_loopback(host):
        # The workers read their settings after this.
        os.environ["HOST"] = host


def post_fork(server, worker):
    """A worker dies with its master, however that dies."""
    tether(signal.SIGKILL, worker.ppid)


def worker_exit(server, worker):
    """End the worker's threads, connections and leases."""
    app = getattr(worker, "wsgi", None)
    if app is not None:
        app.extensions["proxy"].close()
