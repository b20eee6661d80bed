"""What is written down of one store operation: a log line, and an event where a backend was asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from proxy_app.services.relayed import Trace
from proxy_app.store.events import Level

Note = Callable[[str, str, str, str, Level], None]
"""Is told of a change: its kind, who made it, the model, what was done, and the event's level."""

# What an operation is called among the events, and in words.
_DONE = {
    "/api/pull": ("model.pulled", "pulled to"),
    "/api/push": ("model.pushed", "pushed from"),
    "/api/create": ("model.created", "made on"),
    "/api/copy": ("model.copied", "copied{about} on"),
    "/api/delete": ("model.deleted", "deleted from"),
}
_WENT = {"complete": "was {} {}", "partly": "was {} {}, though not everywhere"}


@dataclass(slots=True)
class StoreTrace(Trace):
    """Args: note: who keeps the events. about: what the model's name does not say."""

    note: Note = lambda *_: None
    about: str = ""
    is_told: bool = False

    def write(self) -> None:
        Trace.write(self)
        self.tell()

    def tell(self) -> None:
        """Note the event, once; the outcome is known."""
        if self.is_told or not self.attempts or self.route not in _DONE:
            return
        self.is_told = True
        kind, done = _DONE[self.route]
        went = _WENT.get(self.outcome, f"was not {{}} {{}} ({self.outcome.replace('_', ' ')})")
        text = went.format(done.format(about=self.about), ", ".join(self.attempts))
        is_harmless = self.outcome == "complete" and kind != "model.deleted"
        self.note(kind, self.key_id, self.named, text, "info" if is_harmless else "warning")
