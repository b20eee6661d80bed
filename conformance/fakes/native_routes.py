"""Ollama's own inference and embedding routes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from conformance.fakes import replies
from conformance.fakes.answers import Answer, json_answer
from conformance.fakes.decode import RequestError, decode, duration_s
from conformance.fakes.machine import Desk, Found
from conformance.fakes.names import parse_name, parse_reference
from conformance.fakes.recorded import RecordedRequest

INTEGER_OPTIONS = frozenset({"num_ctx", "num_batch", "num_gpu", "num_predict", "num_thread", "seed"})


def generate(desk: Desk, request: RecordedRequest) -> Answer:
    fields = decode(request.body, "GenerateRequest")
    if not fields.get("model"):
        raise RequestError(404, "model '' not found")
    prompt = fields.get("prompt", "")
    return native(desk, "generate", request.target, fields, prompt, bool(prompt))


def chat(desk: Desk, request: RecordedRequest) -> Answer:
    fields = decode(request.body, "ChatRequest")
    prompt = prompt_of(fields.get("messages"))
    return native(desk, "chat", request.target, fields, prompt, bool(fields.get("messages")))


def native(desk: Desk, route: str, path: str, fields: dict[str, Any], prompt: str, speaks: bool) -> Answer:
    check_fields(fields)
    found = desk.find(fields.get("model", ""), "model '{asked}' not found")
    check_capabilities(found, fields)
    desk.touch(found, fields)
    if not speaks:
        unload = duration_s(fields.get("keep_alive")) == 0
        return replies.native_load(route, found.asked, "unload" if unload else "load")
    streaming = fields.get("stream", True)
    failure = desk.check_runner(path, prompt, streaming)
    if failure is not None:
        return failure
    reply = desk.reply(found, fields, prompt)
    context = route == "generate" and not fields.get("raw")
    if streaming:
        return replies.native_stream(route, reply, context, replies.MID_ERRORS[route])
    return reply.timed(json_answer(replies.native_final(route, reply, reply.text, context)))


def embed(desk: Desk, request: RecordedRequest) -> Answer:
    fields = decode(request.body, "EmbedRequest")
    inputs = embed_inputs(fields.get("input"))
    return replies.embed_answer(embedder(desk, fields).asked, inputs)


def embedder(desk: Desk, fields: Mapping[str, Any]) -> Found:
    asked = fields.get("model", "")
    if not asked:
        raise RequestError(404, "model '' not found")
    found = desk.find(asked, 'model "{asked}" not found, try pulling it first')
    desk.touch(found, fields)
    return found


def embeddings(desk: Desk, request: RecordedRequest) -> Answer:
    fields = decode(request.body, "EmbeddingRequest")
    asked = fields.get("model", "")
    unknown = 'model "{asked}" not found, try pulling it first'
    found = desk.find(asked, unknown)
    # This route alone compares names with their case.
    if not found.cloud and parse_name(parse_reference(asked)[1]) != found.model.canonical:
        raise RequestError(404, unknown.format(asked=asked))
    desk.touch(found, fields)
    vector = replies.RAW_VECTOR if fields.get("prompt") else ()
    return json_answer({"embedding": vector})


def prompt_of(messages: Any) -> str:
    """All text of a conversation, in whatever form the dialect has it."""
    if not isinstance(messages, Sequence):
        return ""
    told = [message for message in messages if isinstance(message, Mapping)]
    return " ".join(str(message.get("content", "")) for message in told)


def embed_inputs(value: Any) -> list[str]:
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    raise RequestError(400, "invalid input type")


def check_fields(fields: Mapping[str, Any]) -> None:
    """The refusals of generate and chat that do not depend on the model."""
    think = fields.get("think")
    if isinstance(think, str) and think not in ("high", "medium", "low", "max"):
        levels = '(must be "high", "medium", "low", "max", true, or false)'
        raise RequestError(400, f'invalid think value: "{think}" {levels}')
    duration_s(fields.get("keep_alive"))
    top = fields.get("top_logprobs", 0)
    if isinstance(top, int) and not 0 <= top <= 20:
        raise RequestError(400, "top_logprobs must be between 0 and 20")


def check_capabilities(found: Found, fields: Mapping[str, Any]) -> None:
    """The refusals that depend on what a model can do, and on its options."""
    able = found.model.capabilities
    for key, needed in (("suffix", "insert"), ("tools", "tools")):
        if fields.get(key) and needed not in able:
            full = found.model.canonical.full
            raise RequestError(400, f"{full} does not support {needed}")
    if fields.get("think") and "thinking" not in able:
        raise RequestError(400, f'"{found.asked}" does not support thinking')
    for key, value in (fields.get("options") or {}).items():
        if key in INTEGER_OPTIONS and not isinstance(value, int):
            raise RequestError(500, f'option "{key}" must be of type integer')
