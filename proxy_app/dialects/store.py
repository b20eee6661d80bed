"""Requests that change what a backend stores, read as Ollama reads them.

Source: Ollama server/routes.go:1102-1245, 1647-1701 and server/create.go:51-120 (v0.33.0-rc2); the order of the checks
is the order of the errors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from proxy_app.dialects.gojson import GoObject, kind_of, read_fields
from proxy_app.domain import ModelName, parse_listed, parse_name
from proxy_app.errors import BadRequest, InvalidModelName, ModelRequired

_MODEL_FIELDS = {"model": "string", "name": "string", "stream": "bool"}
_FILE_MAPS = ("files", "draft_files", "adapters")
_CREATE_FIELDS = {
    **_MODEL_FIELDS,
    "from": "string",
    "remote_host": "string",
    "draft_quantize": "string",
    **dict.fromkeys(_FILE_MAPS, "map[string]string"),
}
# manifest/paths.go:40-47
_DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")
INVALID_DIGEST = "invalid digest format"


@dataclass(frozen=True, slots=True)
class ModelAsk:
    """A pull, a push or a delete.

    Args:
        given: the name as the client wrote it, which error texts repeat.
        name: under which a backend stores it.
        streams: does the client want to see the progress?
    """

    given: str
    name: ModelName
    streams: bool = True


@dataclass(frozen=True, slots=True)
class CopyAsk:
    """A copy: the source as the client wrote it, and both names."""

    given: str
    source: ModelName
    destination: ModelName


@dataclass(frozen=True, slots=True)
class CreateAsk:
    """A new model.

    Args:
        made_from: the model that it is made from; None where it is made of files alone.
        is_foreign: is it made from what no list of models can speak of: another host's, or no model's name?
        digests: of the uploaded files that it is made of.
    """

    name: ModelName
    made_from: ModelName | None
    digests: tuple[str, ...]
    streams: bool = True
    is_foreign: bool = False

    @property
    def base(self) -> ModelName | None:
        """What a backend has to hold for it."""
        return None if self.made_from is None or self.made_from.is_cloud or self.is_foreign else self.made_from


def read_pull(body: bytes) -> ModelAsk:
    """Raises: BadRequest: with Ollama's text; a missing name is an invalid one here."""
    fields = read_fields(body, "PullRequest", _MODEL_FIELDS)
    given = _named(fields)
    try:
        name = _stored_as(given)
    except ModelRequired:
        raise InvalidModelName from None
    return ModelAsk(given, name, fields.get("stream", True))


def read_push(body: bytes) -> ModelAsk:
    """Raises: BadRequest: with Ollama's text."""
    fields = read_fields(body, "PushRequest", _MODEL_FIELDS)
    given = _named(fields)
    if not given:
        raise ModelRequired
    return ModelAsk(given, parse_listed(given), fields.get("stream", True))


def read_delete(body: bytes) -> ModelAsk:
    """Raises: BadRequest: with Ollama's text."""
    given = _named(read_fields(body, "DeleteRequest", _MODEL_FIELDS))
    try:
        return ModelAsk(given, _stored_as(given))
    except InvalidModelName as exc:
        if str(exc) != str(InvalidModelName()):
            # Two sources in one name have a text of their own.
            raise
        raise BadRequest(f"name {quoted(given)} is invalid") from None


def read_copy(body: bytes) -> CopyAsk:
    """Raises: BadRequest: with Ollama's text."""
    fields = read_fields(body, "CopyRequest", {"source": "string", "destination": "string"})
    source, destination = (_valid(label, fields.get(label, "")) for label in ("source", "destination"))
    return CopyAsk(fields.get("source", ""), source, destination)


def read_create(body: bytes) -> CreateAsk:
    """Raises: BadRequest: with Ollama's text."""
    fields = read_fields(body, "CreateRequest", _CREATE_FIELDS)
    files, drafts, adapters = (_strings(fields, label) for label in _FILE_MAPS)
    _check_files({**files, **drafts})
    if fields.get("draft_quantize") and not drafts:
        raise BadRequest("--draft-quantize requires a DRAFT model")
    if "" in adapters.values():
        raise BadRequest(INVALID_DIGEST)
    name = parse_listed(_named(fields))
    digests = tuple(dict.fromkeys([*files.values(), *drafts.values(), *adapters.values()]))
    for digest in digests:
        check_digest(digest)
    made_from = _made_from(fields)
    is_foreign = bool(fields.get("remote_host")) or (made_from is None and bool(fields.get("from")))
    return CreateAsk(name, made_from, digests, fields.get("stream", True), is_foreign)


def check_digest(digest: str) -> None:
    """Raises: BadRequest: it is none that Ollama takes."""
    if not _DIGEST.fullmatch(digest):
        raise BadRequest(INVALID_DIGEST)


def streaming(body: bytes) -> bytes:
    """The same request, asking for progress: of two members of one name Go takes the last."""
    text = body.decode("utf-8", "replace").lstrip()
    value, end = json.JSONDecoder().raw_decode(text)
    head = text[: end - 1] + "," if value else "{"
    return f'{head}"stream":true}}'.encode("utf-8", "replace")


def quoted(text: str) -> str:
    """A text as Go's %q prints it."""
    return json.dumps(text, ensure_ascii=False)


def _named(fields: Mapping[str, Any]) -> str:
    given: str = fields.get("model") or fields.get("name", "")
    return given


def _stored_as(given: str) -> ModelName:
    """The name that a backend keeps a model under: that of a cloud model has a legacy form.

    Source: internal/modelref/modelref.go, NormalizePullName.
    """
    name = parse_name(given)
    if not name.is_cloud:
        return parse_listed(name.base)
    has_tag = ":" in name.base.rpartition("/")[2]
    return parse_listed(f"{name.base}-cloud" if has_tag else f"{name.base}:cloud")


def _valid(label: str, text: str) -> ModelName:
    try:
        return parse_listed(text)
    except InvalidModelName:
        raise BadRequest(f"{label} {quoted(text)} is invalid") from None


def _strings(fields: Mapping[str, Any], label: str) -> dict[str, str]:
    held = fields.get(label)
    found = dict(held.pairs) if isinstance(held, GoObject) else {}
    for value in found.values():
        if value is not None and not isinstance(value, str):
            raise BadRequest(
                f"json: cannot unmarshal {kind_of(value)} into Go struct field CreateRequest.{label} of type string"
            )
    return {key: value or "" for key, value in found.items()}


def _check_files(files: Mapping[str, str]) -> None:
    for path, digest in files.items():
        if path != "." and {"", ".", ".."} & set(path.split("/")):
            raise BadRequest("file path must be relative")
        if not digest:
            raise BadRequest(INVALID_DIGEST)


def _made_from(fields: Mapping[str, Any]) -> ModelName | None:
    """What it is made from; a name that Ollama will refuse is left to it."""
    try:
        return parse_name(fields["from"]) if fields.get("from") else None
    except BadRequest:
        return None
