"""What a fake server pretends to be, and how it decides about models and answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain, cycle, islice
from typing import Any

from conformance.fakes.answers import Answer, error_answer, runner_error
from conformance.fakes.decode import RequestError, duration_s
from conformance.fakes.models import FakeModel
from conformance.fakes.names import BadReference, Name, parse_name, parse_reference
from conformance.fakes.replies import MID_ERRORS, Reply
from conformance.fakes.store import ModelStore

# What an answer goes on with when a test wants it longer than its sentence.
FILLER = (" The", " quick", " brown", " fox", " jumps", " over", " the", " lazy", " dog", ".")
NO_CLOUD = "ollama cloud is disabled: "
RUNNER_BOOM = '{"error": {"code": 500, "message": "boom", "type": "server_error"}}'


@dataclass(eq=False)
class Machine:
    """What a fake pretends to be. Tests change the fields at any time; the server reads them.

    Args:
        tokens: length of every answer in tokens; None: the length of its sentence.
        token_delay_s: pause between tokens; `first_token_delay_s` before the first one.
        pullable: names that a pull finds in the registry; None: every name.
    """

    name: str = "fake"
    store: ModelStore = field(default_factory=lambda: ModelStore(()))
    version: str = "0.33.0"
    cloud_disabled: bool = False
    tokens: int | None = None
    token_delay_s: float = 0.0
    first_token_delay_s: float = 0.0
    pullable: set[str] | None = None
    pull_delay_s: float = 0.0

    @property
    def sentence(self) -> list[str]:
        return re.findall(r"\s*\w+|[^\w\s]", f"Hello from {self.name}.")

    @property
    def store_path(self) -> str:
        """Where its models lie; it leaks into show documents and differs per machine."""
        return f"/srv/{self.name}/models"


@dataclass(frozen=True)
class Found:
    """A model that a request asked for."""

    asked: str
    model: FakeModel
    cloud: bool


class Desk:
    """Finds models and scripts the runner for one Machine; all routes work through it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.store = machine.store

    def parse(self, text: str) -> tuple[bool, Name, str]:
        """Return (cloud, name, base) of a reference; refuse what Ollama refuses."""
        try:
            source, base = parse_reference(text)
        except BadReference as exc:
            raise RequestError(400, str(exc)) from None
        name = parse_name(base)
        if not name.valid:
            raise RequestError(400, "invalid model name")
        return source == "cloud", name, base

    def find(self, text: str, unknown: str, cloud_text: str = "remote model is unavailable") -> Found:
        """Find the model a client named; `unknown` is a 404 text with {asked} and {resolved}."""
        cloud, name, base = self.parse(text)
        if cloud and self.machine.cloud_disabled:
            raise RequestError(403, NO_CLOUD + cloud_text, "native")
        model = self.store.find_cloud(base) if cloud else self.store.find(name)
        if model is None:
            raise RequestError(404, unknown.format(asked=text, resolved=name.shortest))
        return Found(text, model, cloud)

    def reply(self, found: Found, fields: Mapping[str, Any], prompt: str) -> Reply:
        """Script the runner; `ERRMID` in a prompt kills it after two tokens, as in the recordings.

        `options.fake_tokens` and `options.fake_delay_s` set length and pace of one answer.
        """
        options = fields.get("options") or {}
        machine = self.machine
        tokens = self.script(options.get("fake_tokens", machine.tokens))
        limit = options.get("num_predict", fields.get("max_tokens"))
        cut = isinstance(limit, int) and 0 < limit < len(tokens)
        return Reply(
            found.asked,
            tokens[:limit] if cut else tokens,
            "length" if cut else "stop",
            float(options.get("fake_delay_s", machine.token_delay_s)),
            machine.first_token_delay_s,
            2 if "ERRMID" in prompt else None,
            prompt,
        )

    def script(self, wanted: int | None) -> list[str]:
        """The sentence, cut or lengthened to the wanted number of tokens."""
        if wanted is None:
            return self.machine.sentence
        return list(islice(chain(self.machine.sentence, cycle(FILLER)), wanted))

    def check_runner(self, path: str, prompt: str, streaming: bool) -> Answer | None:
        """The failures that a prompt can ask for."""
        if "ERR500" in prompt:
            return (runner_error if streaming else plain_error)(path, RUNNER_BOOM)
        if "ERRMID" in prompt and not streaming:
            return plain_error(path, MID_ERRORS["chat"])
        return None

    def touch(self, found: Found, fields: Mapping[str, Any]) -> None:
        """Load what a request used, for as long as it says."""
        keep_s = duration_s(fields.get("keep_alive"))
        if found.cloud:
            return
        if keep_s == 0:
            self.store.unload(found.model.name)
        elif self.store.find(found.model.canonical) is not None:
            self.store.load(found.model.name, keep_s)


def plain_error(path: str, text: str) -> Answer:
    return error_answer(path, 500, text)
