"""What the simulated runner says, and how Ollama's own routes write it down.

One `Reply` is the runner's output; one function per route turns it into the bytes that Ollama
would send, streamed or whole. Shapes are those of the recorded answers in tests/golden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from conformance.fakes.answers import (
    JSON_PLAIN,
    NDJSON,
    SSE,
    Answer,
    Stream,
    go_json,
    json_answer,
    now_text,
)

PROMPT_TOKENS = 7
MID_ERRORS = {
    "generate": "error unmarshalling llama-server response: json: cannot unmarshal string into Go"
    " value of type llm.llamaServerCompletionResponse",
    "chat": "llama-server chat error: map[code:500 message:mid boom]",
}
VECTOR = (0.18257418, 0.36514837, 0.5477226, 0.73029673)
RAW_VECTOR = (0.10000000149011612, 0.20000000298023224, 0.30000001192092896, 0.4000000059604645)
EVENT_HEADERS = (
    ("Cache-Control", "no-cache"),
    ("Connection", "keep-alive"),
    ("Content-Type", SSE),
)


@dataclass(frozen=True)
class Reply:
    """A scripted answer of the runner.

    Args:
        model: the string as the client sent it; Ollama echoes it.
        fails_after: number of tokens after which the runner dies; None: it does not.
    """

    model: str
    tokens: Sequence[str]
    done_reason: str = "stop"
    delay_s: float = 0.0
    first_delay_s: float = 0.0
    fails_after: int | None = None
    prompt: str = ""

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    @property
    def spoken(self) -> Sequence[str]:
        """The tokens that come out before the runner dies."""
        return self.tokens if self.fails_after is None else self.tokens[: self.fails_after]

    def timed(self, answer: Answer) -> Answer:
        """A whole answer, after the time that streaming it would take."""
        delay_s = self.first_delay_s + self.delay_s * len(self.tokens)
        return replace(answer, delay_s=delay_s)

    def metrics(self) -> dict[str, int]:
        count = len(self.tokens)
        return {
            "total_duration": 729505508,
            "load_duration": 523753703,
            "prompt_eval_count": PROMPT_TOKENS,
            "prompt_eval_duration": 12500000,
            "eval_count": count,
            "eval_duration": 10000000 * count,
        }


def stream_answer(
    reply: Reply,
    record: Callable[[str], bytes],
    ends: tuple[tuple[bytes, ...], Iterable[bytes], tuple[bytes, ...]],
    headers: tuple[tuple[str, str], ...],
) -> Answer:
    """Build a streamed answer; `ends` are its prologue, epilogue and broken-off epilogue."""
    prologue, epilogue, broken = ends
    stream = Stream(
        map(record, reply.spoken),
        prologue,
        epilogue if reply.fails_after is None else broken,
        broken,
        reply.delay_s,
        reply.first_delay_s,
    )
    return Answer(200, headers, stream=stream)


# Route -> what stands before and after a token in its record.
RECORD_FORMS = {
    "generate": (b'","response":', b',"done":false}\n'),
    "chat": (b'","message":{"role":"assistant","content":', b'},"done":false}\n'),
}


def native_part(route: str, text: str) -> dict[str, Any]:
    if route == "generate":
        return {"response": text}
    return {"message": {"role": "assistant", "content": text}}


def native_final(route: str, reply: Reply, text: str, context: bool) -> dict[str, Any]:
    tail = {"context": [1, 2, 3, 4, 5, 6]} if context else {}
    return {
        "model": reply.model,
        "created_at": now_text(),
        **native_part(route, text),
        "done": True,
        "done_reason": reply.done_reason,
        **tail,
        **reply.metrics(),
    }


def native_record(route: str, model: str) -> Callable[[str], bytes]:
    """A line per token, by template: this runs ten thousand times a second in benches."""
    head = b'{"model":' + go_json(model) + b',"created_at":"'
    opening, closing = RECORD_FORMS[route]

    def record(token: str) -> bytes:
        return head + now_text().encode() + opening + go_json(token) + closing

    return record


def native_stream(route: str, reply: Reply, context: bool, error: str) -> Answer:
    # A generator, so that the last line is dated when it is sent.
    final = (go_json(native_final(route, reply, "", context)) + b"\n" for _ in range(1))
    broken = go_json({"error": error}) + b"\n"
    ends = ((), final, (broken,))
    return stream_answer(reply, native_record(route, reply.model), ends, (("Content-Type", NDJSON),))


def native_load(route: str, model: str, reason: str) -> Answer:
    """The answer to a request that only loads or unloads."""
    return json_answer(
        {
            "model": model,
            "created_at": now_text(),
            **native_part(route, ""),
            "done": True,
            "done_reason": reason,
        }
    )


def line_answer(value: Any) -> Answer:
    """A whole /v1 answer: Ollama's json.Encoder ends it with a line end."""
    return Answer(200, (("Content-Type", JSON_PLAIN),), go_json(value) + b"\n")


def sse(value: Any) -> bytes:
    return b"data: " + go_json(value) + b"\n\n"


def words_in(inputs: Sequence[str]) -> int:
    return sum(len(text.split()) for text in inputs)


def embed_answer(model: str, inputs: Sequence[str]) -> Answer:
    value: dict[str, Any] = {"model": model, "embeddings": [VECTOR] * len(inputs)}
    if inputs:
        value |= {"total_duration": 6139051, "load_duration": 2486090}
        value |= {"prompt_eval_count": words_in(inputs)}
    return json_answer(value)


def progress(statuses: Sequence[Mapping[str, Any]], delay_s: float) -> Answer:
    """The progress lines of a store operation."""

    def lines() -> Iterator[bytes]:
        for status in statuses:
            yield go_json(dict(status)) + b"\n"

    return Answer(200, (("Content-Type", NDJSON),), stream=Stream(lines(), delay_s=delay_s))
