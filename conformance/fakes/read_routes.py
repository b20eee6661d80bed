"""Routes that only read: versions, listings, show."""

from __future__ import annotations

from urllib.parse import unquote

from conformance.fakes.answers import Answer, json_answer
from conformance.fakes.decode import decode
from conformance.fakes.machine import Desk
from conformance.fakes.models import ShowAsk, openai_item, ps_item, show_document, tags_item
from conformance.fakes.recorded import RecordedRequest
from conformance.fakes.replies import line_answer


def root(desk: Desk, request: RecordedRequest) -> Answer:
    headers = (("Content-Type", "text/plain; charset=utf-8"),)
    return Answer(200, headers, b"Ollama is running")


def version(desk: Desk, request: RecordedRequest) -> Answer:
    return json_answer({"version": desk.machine.version})


def status(desk: Desk, request: RecordedRequest) -> Answer:
    disabled = desk.machine.cloud_disabled
    return json_answer({"cloud": {"disabled": disabled, "source": "env" if disabled else "none"}})


def tags(desk: Desk, request: RecordedRequest) -> Answer:
    return json_answer({"models": [tags_item(model) for model in desk.store.listed()]})


def ps(desk: Desk, request: RecordedRequest) -> Answer:
    items = [ps_item(model, at) for model, at in desk.store.resident()]
    return json_answer({"models": items})


def show(desk: Desk, request: RecordedRequest) -> Answer:
    fields = decode(request.body, "ShowRequest")
    asked = fields.get("model") or fields.get("name") or ""
    unknown = "model '{resolved}' not found"
    found = desk.find(asked, unknown, "remote model details are unavailable")
    ask = ShowAsk(fields.get("verbose", False), fields.get("system", ""), fields.get("options", {}))
    document = show_document(found.model, ask, desk.machine.store_path)
    agent = request.header("user-agent") or ""
    if agent.startswith("GitHubCopilotChat/") and not found.cloud:
        document["model_info"]["general.basename"] = asked
    return json_answer(document)


def openai_models(desk: Desk, request: RecordedRequest) -> Answer:
    # An empty store is null here, not []; Ollama forgot, clients must cope.
    items = [openai_item(model) for model in desk.store.listed()] or None
    return line_answer({"object": "list", "data": items})


def openai_model(desk: Desk, request: RecordedRequest) -> Answer:
    asked = unquote(request.target.removeprefix("/v1/models/"))
    found = desk.find(asked, "model '{resolved}' not found")
    return line_answer(openai_item(found.model, asked))
