"""All settings, read once from the environment into one frozen value.

Each field of the table knows its environment variable, default, unit and help; `docs/settings.md` is generated from it
(`make docs`). All problems are reported at once.
"""

from proxy_app.settings.backends import BackendSettings, check_url, endpoint_of, read_backend, read_backends
from proxy_app.settings.document import settings_doc
from proxy_app.settings.loading import check_exposure, load, origins
from proxy_app.settings.table import Settings, is_loopback

__all__ = [
    "BackendSettings",
    "Settings",
    "check_exposure",
    "check_url",
    "endpoint_of",
    "is_loopback",
    "load",
    "origins",
    "read_backend",
    "read_backends",
    "settings_doc",
]
