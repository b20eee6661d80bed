"""What counts as a good, a marked and a cut answer."""

from __future__ import annotations

import json
from typing import Any

from conformance.fakes.http import RawResponse
from conformance.row import check
from conformance.site import Site, records, told


def text_of(body: bytes) -> str:
    """What the model says in a body of either dialect, streamed or whole."""
    return "".join(said(record) for record in records(body))


def said(record: Any) -> str:
    if not isinstance(record, dict):
        return ""
    choices = record.get("choices") or [record]
    parts = (choice.get("message") or choice.get("delta") or {} for choice in choices)
    return "".join(part.get("content") or "" for part in parts)


def has_end(body: bytes) -> bool:
    """Tell whether a body has Ollama's own end mark: `done`, `[DONE]`, or a finish reason."""
    if b"data: [DONE]" in body:
        return True
    found = [record for record in records(body) if isinstance(record, dict)]
    return any(record.get("done") is True or record.get("object") == "chat.completion" for record in found)


def has_error(body: bytes) -> bool:
    """Tell whether a body holds an error record, in any dialect."""
    found = (record for record in records(body) if isinstance(record, dict))
    return b"event: error\n" in body or any("error" in record for record in found)


def is_good(site: Site, answer: RawResponse | None) -> bool:
    """Tell whether an answer is the whole sentence of one of the backends, and nothing else."""
    if answer is None or answer.status != 200 or not answer.complete or has_error(answer.body):
        return False
    sentences = {"".join(fake.sentence) for fake in site.backends}
    return text_of(answer.body) in sentences and has_end(answer.body)


def check_good(site: Site, answer: RawResponse | None, when: str = "") -> None:
    check(is_good(site, answer), f"{when}the answer was {told(answer)}")


def check_honest(site: Site, answer: RawResponse | None) -> None:
    """Fail where an answer that is not whole looks as if it were.

    Honest are: the whole answer (of another backend), a status that is an error, a body that is
    visibly cut, and an error record in the body.
    """
    if answer is None or answer.status >= 400 or not answer.complete or is_good(site, answer):
        return
    check(has_error(answer.body) and not ends_well(answer.body), f"a complete-looking answer: {told(answer)}")


def ends_well(body: bytes) -> bool:
    """Tell whether the last record says that all went well."""
    last = [record for record in records(body) if isinstance(record, dict)][-1:]
    return any(record.get("done") is True and "error" not in record for record in last)


def check_json(answer: RawResponse) -> Any:
    try:
        return answer.json()
    except json.JSONDecodeError:
        check(False, f"no JSON: {told(answer)}")
