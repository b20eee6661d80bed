"""A view's word on the connection that its request came on; gunicorn leaves applications none."""

from __future__ import annotations

import threading
from typing import Any

# One request at a time per greenlet.
_current = threading.local()


def serving(request: Any) -> None:
    """The worker says which of gunicorn's requests this greenlet works on."""
    _current.request = request


def close_after_answer() -> None:
    """The rest of the request cannot be trusted to be what it says: no other one follows it on this connection."""
    request = getattr(_current, "request", None)
    if request is not None:
        request.must_close = True
