"""The runner's output in the Anthropic form that Ollama has."""

from __future__ import annotations

import secrets
from typing import Any

from conformance.fakes.answers import Answer
from conformance.fakes.replies import (
    EVENT_HEADERS,
    PROMPT_TOKENS,
    Reply,
    line_answer,
    sse,
    stream_answer,
)

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}


def message_event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\n".encode() + sse({"type": kind, **fields})


def message_value(reply: Reply, content: list[Any], counts: tuple[int, int]) -> dict[str, Any]:
    reason = {"stop_reason": STOP_REASONS[reply.done_reason]} if content else {}
    return {
        "id": "msg_" + secrets.token_hex(12),
        "type": "message",
        "role": "assistant",
        "model": reply.model,
        "content": content,
        **reason,
        "usage": {"input_tokens": counts[0], "output_tokens": counts[1]},
    }


def message_delta(token: str) -> bytes:
    delta = {"type": "text_delta", "text": token}
    return message_event("content_block_delta", index=0, delta=delta)


def message_stream(reply: Reply) -> Answer:
    counts = {"input_tokens": PROMPT_TOKENS, "output_tokens": len(reply.tokens)}
    delta = {"stop_reason": STOP_REASONS[reply.done_reason]}
    block = {"type": "text", "text": ""}
    # Before the run Ollama can only estimate: a token per four characters, rounded up.
    estimate = -(-len(reply.prompt) // 4)
    prologue = (
        message_event("message_start", message=message_value(reply, [], (estimate, 0))),
        message_event("content_block_start", index=0, content_block=block),
    )
    epilogue = (
        message_event("content_block_stop", index=0),
        message_event("message_delta", delta=delta, usage=counts),
        message_event("message_stop"),
    )
    return stream_answer(reply, message_delta, (prologue, epilogue, ()), EVENT_HEADERS)


def message_whole(reply: Reply) -> Answer:
    content = [{"type": "text", "text": reply.text}]
    value = message_value(reply, content, (PROMPT_TOKENS, len(reply.tokens)))
    return reply.timed(line_answer(value))
