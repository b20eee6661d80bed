"""The OpenAI and Anthropic routes, which Ollama maps onto its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conformance.fakes import anthropic_replies, openai_replies
from conformance.fakes.answers import Answer, text_answer
from conformance.fakes.decode import RequestError, decode, multipart_fields
from conformance.fakes.machine import Desk
from conformance.fakes.native_routes import check_capabilities, embed_inputs, embedder, prompt_of
from conformance.fakes.recorded import RecordedRequest
from conformance.fakes.replies import Reply, line_answer


def compat(desk: Desk, request: RecordedRequest, fields: Mapping[str, Any], prompt: str) -> Reply | Answer:
    """The part that all /v1 routes share: a reply to write down, or a failure to send."""
    found = desk.find(fields.get("model", ""), "model '{asked}' not found")
    check_capabilities(found, fields)
    desk.touch(found, {})
    failure = desk.check_runner(request.target, prompt, fields.get("stream", False))
    return failure or desk.reply(found, fields, prompt)


def openai_chat(desk: Desk, request: RecordedRequest) -> Answer:
    fields = decode(request.body, "ChatCompletionRequest", missing="EOF")
    if not fields.get("messages"):
        raise RequestError(400, "[] is too short - 'messages'", "middleware")
    reply = compat(desk, request, fields, prompt_of(fields["messages"]))
    if isinstance(reply, Answer):
        return reply
    builder = openai_replies.ChatCompletion(reply)
    return builder.stream(wants_usage(fields)) if fields.get("stream") else builder.whole()


def openai_completion(desk: Desk, request: RecordedRequest) -> Answer:
    fields = decode(request.body, "CompletionRequest", missing="EOF")
    reply = compat(desk, request, fields, str(fields.get("prompt", "")))
    if isinstance(reply, Answer):
        return reply
    builder = openai_replies.TextCompletion(reply, wants_usage(fields))
    return builder.stream() if fields.get("stream") else builder.whole()


def openai_response(desk: Desk, request: RecordedRequest) -> Answer:
    fields = decode(request.body, "ResponsesRequest", missing="EOF")
    reply = compat(desk, request, fields, str(fields.get("input", "")))
    if isinstance(reply, Answer):
        return reply
    builder = openai_replies.Response(reply)
    return builder.stream() if fields.get("stream") else builder.whole()


def openai_embeddings(desk: Desk, request: RecordedRequest) -> Answer:
    fields = decode(request.body, "EmbedRequest", missing="EOF")
    inputs = embed_inputs(fields.get("input"))
    as_base64 = fields.get("encoding_format") == "base64"
    return openai_replies.embeddings(embedder(desk, fields).asked, inputs, as_base64)


def messages(desk: Desk, request: RecordedRequest) -> Answer:
    fields = decode(request.body, "MessagesRequest", missing="EOF")
    if not fields.get("model"):
        raise RequestError(400, "model is required", "middleware")
    limit = fields.get("max_tokens")
    if not isinstance(limit, int) or limit <= 0:
        text = "max_tokens is required and must be positive"
        raise RequestError(400, text, "middleware")
    if not fields.get("messages"):
        raise RequestError(400, "messages is required", "middleware")
    reply = compat(desk, request, fields, prompt_of(fields["messages"]))
    if isinstance(reply, Answer):
        return reply
    if fields.get("stream"):
        return anthropic_replies.message_stream(reply)
    return anthropic_replies.message_whole(reply)


def transcription(desk: Desk, request: RecordedRequest) -> Answer:
    content_type = request.header("content-type") or ""
    if not content_type.startswith("multipart/form-data"):
        text = "failed to parse multipart form: request Content-Type isn't multipart/form-data"
        raise RequestError(400, text, "middleware")
    fields = multipart_fields(content_type, request.body)
    if "file" not in fields:
        raise RequestError(400, "file is required", "middleware")
    model = fields.get("model", b"").decode("utf-8", "replace")
    if not model:
        raise RequestError(400, "model is required", "middleware")
    reply = compat(desk, request, {"model": model}, "")
    if isinstance(reply, Answer):
        return reply
    if fields.get("response_format") == b"text":
        return reply.timed(text_answer(reply.text))
    return reply.timed(line_answer({"text": reply.text}))


def wants_usage(fields: Mapping[str, Any]) -> bool:
    return bool((fields.get("stream_options") or {}).get("include_usage"))
