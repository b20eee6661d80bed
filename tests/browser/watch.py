"""What a page of ours never does, seen by the browser itself."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from playwright.sync_api import BrowserContext, ConsoleMessage, Dialog, Request, WebError

# These are parts of the page itself, no requests.
INNER = ("data", "blob", "about")


class Watch:
    """The faults of all pages of a context: errors in the console (a breach of the Content-Security-Policy is one),
    errors that no script caught, requests to any other host, and boxes that a script opens.

    Owned by the fixture of one test.
    """

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.faults: list[str] = []
        self._host = urlsplit(url).netloc
        context.on("console", self._heard)
        context.on("weberror", self._thrown)
        context.on("request", self._sent)
        context.on("dialog", self._asked)

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning", "assert"):
            self.faults.append(f"console {message.type}: {message.text} ({message.location.get('url')})")

    def _thrown(self, error: WebError) -> None:
        self.faults.append(f"uncaught: {error.error}")

    def _sent(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in INNER and parts.netloc != self._host:
            self.faults.append(f"another host: {request.url}")

    def _asked(self, dialog: Dialog) -> None:
        """Ours ask in the page itself; whoever is let in to run a script shows that by such a box."""
        self.faults.append(f"a box: {dialog.type} {dialog.message}")
        dialog.dismiss()

    def forgive(self, pattern: str) -> None:
        """Forget the faults that a test meant to cause; there has to be one."""
        meant = [fault for fault in self.faults if re.search(pattern, fault)]
        assert meant, f"nothing like {pattern!r} among {self.faults}"
        self.faults = [fault for fault in self.faults if fault not in meant]

    def judge(self) -> None:
        assert not self.faults, "\n".join(self.faults)
