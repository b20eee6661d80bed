"""Routes that change the store, and the account's."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

from conformance.fakes.answers import JSON_PLAIN, Answer, json_answer
from conformance.fakes.decode import RequestError, decode
from conformance.fakes.machine import NO_CLOUD, Desk
from conformance.fakes.models import FakeModel, derived_digest
from conformance.fakes.names import Name, parse_name
from conformance.fakes.recorded import RecordedRequest
from conformance.fakes.replies import progress


def pull(desk: Desk, request: RecordedRequest) -> Answer:
    fields = decode(request.body, "PullRequest")
    asked = fields.get("model") or fields.get("name") or ""
    name = parse_name(asked)
    if not name.valid:
        raise RequestError(400, "invalid model name")
    statuses = pull_lines(desk, asked, name)
    if fields.get("stream", True):
        return progress(statuses, desk.machine.pull_delay_s)
    last = statuses[-1]
    return json_answer(last, 500 if "error" in last else 200, JSON_PLAIN)


def pull_lines(desk: Desk, asked: str, name: Name) -> list[dict[str, Any]]:
    known = desk.machine.pullable
    if known is not None and name.key not in {parse_name(each).key for each in known}:
        url = f"https://{name.host}/v2/{name.namespace}/{name.model}/manifests/{name.tag}"
        error = f'pull model manifest: Get "{url}": dial tcp: lookup {name.host}: no such host'
        return [{"status": "pulling manifest"}, {"error": error}]
    model = desk.store.find(name) or FakeModel(asked)
    desk.store.add(model)
    short = model.digest[:12]
    layer = {"digest": f"sha256:{model.digest}", "total": model.size, "completed": model.size}
    names = ("verifying sha256 digest", "writing manifest", "success")
    lines: list[dict[str, Any]] = [{"status": "pulling manifest"}]
    lines.append({"status": f"pulling {short}", **layer})
    return [*lines, *({"status": each} for each in names)]


def push(desk: Desk, request: RecordedRequest) -> Answer:
    fields = decode(request.body, "PushRequest")
    asked = fields.get("model") or fields.get("name") or ""
    if not asked:
        raise RequestError(400, "model is required")
    model = desk.store.find(parse_name(asked))
    lines: list[dict[str, Any]] = [{"error": f"open {desk.machine.store_path}/manifests/x: no such file or directory"}]
    if model is not None:
        layer = {"digest": f"sha256:{model.digest}", "total": model.size, "completed": model.size}
        pushing = {"status": f"pushing {model.digest[:12]}", **layer}
        lines = [{"status": "retrieving manifest"}, pushing, {"status": "pushing manifest"}, {"status": "success"}]
    if model is not None and fields.get("stream", True):
        return progress(lines, desk.machine.pull_delay_s)
    return json_answer(lines[-1], 200 if model else 500, JSON_PLAIN)


def digest_of(request: RecordedRequest) -> str:
    digest = unquote(request.target.removeprefix("/api/blobs/"))
    if not re.fullmatch("sha256[:-][0-9a-fA-F]{64}", digest):
        raise RequestError(400, "invalid digest format")
    return digest.replace("-", ":").lower()


def find_blob(desk: Desk, request: RecordedRequest) -> Answer:
    digest = digest_of(request)
    if digest not in desk.store.blobs:
        raise RequestError(404, f'blob "{digest}" not found')
    return Answer(200)


def upload(desk: Desk, request: RecordedRequest) -> Answer:
    digest = digest_of(request)
    if digest in desk.store.blobs:
        return Answer(200)
    found = f"sha256:{hashlib.sha256(request.body).hexdigest()}"
    if found != digest:
        raise RequestError(400, f'digest mismatch, expected "{digest}", got "{found}"')
    desk.store.blobs[digest] = len(request.body)
    return Answer(201)


def create(desk: Desk, request: RecordedRequest) -> Answer:
    """From a model, or from uploaded files: a new digest under a new name."""
    fields = decode(request.body, "CreateRequest")
    asked = fields.get("model") or fields.get("name") or ""
    name = parse_name(asked)
    if not name.valid:
        raise RequestError(400, "invalid model name")
    if not fields.get("from") and not fields.get("files"):
        raise RequestError(400, "neither 'from' or 'files' was specified")
    for blob in (fields.get("files") or {}).values():
        if blob not in desk.store.blobs:
            raise RequestError(500, f"open {desk.machine.store_path}/blobs/{blob}: no such file or directory")
    base = desk.find(fields["from"], "model '{asked}' not found").model if fields.get("from") else FakeModel(asked)
    digest = derived_digest(f"{base.digest} as {name.key} with {fields.get('system', '')}")
    desk.store.add(replace(base, name=asked, digest=digest, system=fields.get("system", "")))
    lines = [{"status": text} for text in ("writing manifest", "success")]
    if fields.get("stream", True):
        return progress(lines, desk.machine.pull_delay_s)
    return json_answer(lines[-1], 200, JSON_PLAIN)


def copy(desk: Desk, request: RecordedRequest) -> Answer:
    fields = decode(request.body, "CopyRequest")
    source, destination = (fields.get(key, "") for key in ("source", "destination"))
    for label, text in (("source", source), ("destination", destination)):
        if not parse_name(text).valid:
            raise RequestError(400, f'{label} "{text}" is invalid')
    model = desk.store.find(parse_name(source))
    if model is None:
        raise RequestError(404, f'model "{source}" not found')
    desk.store.add(replace(model, name=destination))
    return Answer(200)


def delete(desk: Desk, request: RecordedRequest) -> Answer:
    fields = decode(request.body, "DeleteRequest")
    asked = fields.get("model") or fields.get("name") or ""
    if not parse_name(asked).valid:
        raise RequestError(400, f'name "{asked}" is invalid')
    model = desk.store.find(parse_name(asked))
    if model is None:
        raise RequestError(404, f"model '{asked}' not found")
    desk.store.remove(model.name)
    return Answer(200)


def account(desk: Desk, request: RecordedRequest) -> Answer:
    raise RequestError(503, "account unavailable")


def web_search(desk: Desk, request: RecordedRequest) -> Answer:
    if desk.machine.cloud_disabled:
        raise RequestError(403, NO_CLOUD + "web search is unavailable")
    return json_answer({"results": []})
