"""The runner's output in the OpenAI forms that Ollama has."""

from __future__ import annotations

import base64
import json
import random
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from conformance.fakes.answers import SSE, Answer, go_json
from conformance.fakes.replies import (
    EVENT_HEADERS,
    PROMPT_TOKENS,
    VECTOR,
    Reply,
    line_answer,
    sse,
    stream_answer,
    words_in,
)


def usage(reply: Reply) -> dict[str, int]:
    count = len(reply.tokens)
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": count,
        "total_tokens": PROMPT_TOKENS + count,
    }


class ChatCompletion:
    """Builder of one /v1/chat/completions answer."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        # Ollama's ids are this small: nothing may take them for unique.
        self.id = f"chatcmpl-{random.randrange(999)}"
        self.created = int(time.time())
        self._first = True

    def base(self, kind: str, model: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": model,
            "system_fingerprint": "fp_ollama",
        }

    def chunk(self, delta: Mapping[str, str], finish: str | None, model: str | None = None) -> bytes:
        base = self.base("chat.completion.chunk", self.reply.model if model is None else model)
        choice = {"index": 0, "delta": dict(delta), "finish_reason": finish}
        return sse(base | {"choices": [choice]})

    def record(self, token: str) -> bytes:
        role = {"role": "assistant"} if self._first else {}
        self._first = False
        return self.chunk({**role, "content": token}, None)

    def stream(self, include_usage: bool) -> Answer:
        epilogue = [self.chunk({}, self.reply.done_reason)]
        if include_usage:
            base = self.base("chat.completion.chunk", self.reply.model)
            epilogue.append(sse(base | {"choices": [], "usage": usage(self.reply)}))
        epilogue.append(b"data: [DONE]\n\n")
        # A dead runner shows as one empty chunk without a model, then nothing.
        broken = (self.chunk({"content": ""}, None, model=""),)
        ends = ((), tuple(epilogue), broken)
        return stream_answer(self.reply, self.record, ends, (("Content-Type", SSE),))

    def whole(self) -> Answer:
        message = {"role": "assistant", "content": self.reply.text}
        choice = {"index": 0, "message": message, "finish_reason": self.reply.done_reason}
        base = self.base("chat.completion", self.reply.model)
        return self.reply.timed(line_answer(base | {"choices": [choice], "usage": usage(self.reply)}))


class TextCompletion:
    """Builder of one /v1/completions answer."""

    def __init__(self, reply: Reply, include_usage: bool) -> None:
        self.reply = reply
        self.include_usage = include_usage
        self.id = f"cmpl-{random.randrange(999)}"
        self.created = int(time.time())

    def chunk(self, choices: list[Any], model: str, counts: dict[str, int]) -> bytes:
        value: dict[str, Any] = {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "choices": choices,
            "model": model,
            "system_fingerprint": "fp_ollama",
        }
        return sse(value | ({"usage": counts} if self.include_usage else {}))

    def part(self, text: str, finish: str | None, model: str | None = None) -> bytes:
        choice = {"text": text, "index": 0, "finish_reason": finish}
        zero = dict.fromkeys(usage(self.reply), 0)
        return self.chunk([choice], self.reply.model if model is None else model, zero)

    def stream(self) -> Answer:
        epilogue = [self.part("", self.reply.done_reason)]
        if self.include_usage:
            epilogue.append(self.chunk([], self.reply.model, usage(self.reply)))
        epilogue.append(b"data: [DONE]\n\n")
        ends = ((), tuple(epilogue), (self.part("", None, model=""),))
        record = lambda token: self.part(token, None)  # noqa: E731 - one line, one use
        return stream_answer(self.reply, record, ends, (("Content-Type", SSE),))

    def whole(self) -> Answer:
        choice = {"text": self.reply.text, "index": 0, "finish_reason": self.reply.done_reason}
        value = {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.reply.model,
            "system_fingerprint": "fp_ollama",
            "choices": [choice],
            "usage": usage(self.reply),
        }
        return self.reply.timed(line_answer(value))


class Response:
    """Builder of one /v1/responses answer."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.id = f"resp_{random.randrange(10**6)}"
        self.item_id = f"msg_{random.randrange(10**6)}"
        self.created = int(time.time())
        self._sequence = 0

    def value(self, status: str) -> dict[str, Any]:
        done = status == "completed"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": self.created if done else None,
            "status": status,
            "incomplete_details": None,
            "model": self.reply.model,
            "previous_response_id": None,
            "instructions": None,
            "output": [self.item("completed", [self.part(self.reply.text)])] if done else [],
            "error": None,
            "tools": [],
            "tool_choice": "auto",
            "truncation": "disabled",
            "parallel_tool_calls": True,
            "text": {"format": {"type": "text"}},
            "top_p": 1,
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "top_logprobs": 0,
            "temperature": 1,
            "reasoning": None,
            "usage": self.counts() if done else None,
            "max_output_tokens": None,
            "max_tool_calls": None,
            "store": False,
            "background": False,
            "service_tier": "default",
            "metadata": {},
            "safety_identifier": None,
            "prompt_cache_key": None,
        }

    def counts(self) -> dict[str, Any]:
        count = len(self.reply.tokens)
        return {
            "input_tokens": PROMPT_TOKENS,
            "output_tokens": count,
            "total_tokens": PROMPT_TOKENS + count,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        }

    def item(self, status: str, content: list[Any]) -> dict[str, Any]:
        return {
            "id": self.item_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def event(self, kind: str, **fields: Any) -> bytes:
        """One event; Ollama builds it from a Go map, so its keys are sorted at every depth."""
        value = fields | {"sequence_number": self._sequence, "type": kind}
        self._sequence += 1
        return b"event: " + kind.encode() + b"\ndata: " + go_json(sort_keys(value)) + b"\n\n"

    def place(self) -> dict[str, Any]:
        return {"content_index": 0, "item_id": self.item_id, "output_index": 0}

    def prologue(self) -> tuple[bytes, ...]:
        started = self.value("in_progress")
        item = self.item("in_progress", [])
        return (
            self.event("response.created", response=started),
            self.event("response.in_progress", response=started),
            self.event("response.output_item.added", item=item, output_index=0),
            self.event("response.content_part.added", part=self.part(""), **self.place()),
        )

    def epilogue(self) -> tuple[bytes, ...]:
        self._sequence = 4 + len(self.reply.tokens)
        text = self.reply.text
        item = self.item("completed", [self.part(text)])
        return (
            self.event("response.output_text.done", text=text, logprobs=[], **self.place()),
            self.event("response.content_part.done", part=self.part(text), **self.place()),
            self.event("response.output_item.done", item=item, output_index=0),
            self.event("response.completed", response=self.value("completed")),
        )

    def records(self) -> Callable[[str], bytes]:
        counter = iter(range(4, 10**9))

        def record(token: str) -> bytes:
            self._sequence = next(counter)
            return self.event("response.output_text.delta", delta=token, logprobs=[], **self.place())

        return record

    def stream(self) -> Answer:
        ends = (self.prologue(), self.epilogue(), ())
        return stream_answer(self.reply, self.records(), ends, EVENT_HEADERS)

    def whole(self) -> Answer:
        return self.reply.timed(line_answer(self.value("completed")))


def sort_keys(value: Any) -> Any:
    return json.loads(json.dumps(value, sort_keys=True))


def embeddings(model: str, inputs: Sequence[str], as_base64: bool) -> Answer:
    packed = base64.b64encode(struct.pack("<4f", *VECTOR)).decode()
    vector = packed if as_base64 else VECTOR
    items = [{"object": "embedding", "embedding": vector, "index": index} for index in range(len(inputs))]
    count = words_in(inputs)
    counts = {"prompt_tokens": count, "total_tokens": count}
    return line_answer({"object": "list", "data": items, "model": model, "usage": counts})
