"""Why a request went the way it went, in a sentence for people. Says nothing that a client or a backend wrote."""

from __future__ import annotations

from proxy_app.dialects.usage import Spent
from proxy_app.services.relayed import Trace

# A model that is loaded says some ms for it (Ollama's load_duration).
LOAD_MS = 1_000

# Of a request that no backend was asked for, and of one whose backends all failed.
_REFUSED = {
    "limited": "a limit of its key is used up",
    "model_hidden": "its key may not use the model, or nobody hosts it",
    "model_not_found": "nobody hosts the model",
    "model_required": "it names no model",
    "invalid_model_name": "its model has no valid name",
    "cloud_disabled": "no backend may use the cloud",
    "unavailable": "no backend that could answer is up",
    "cancelled": "an operator ended it before a backend was asked",
    "client_gone": "the client hung up before a backend was asked",
}
# How an answer of the last backend ended.
_ENDED = {
    "client_gone": "the client hung up in the middle of {}'s answer",
    "truncated": "{}'s answer was cut off",
    "silent": "{} fell silent in the middle of its answer",
    "stopped": "Caravan was stopped in the middle of {}'s answer",
    "cancelled": "an operator ended it in the middle of {}'s answer",
    "passed_on": "the same error came twice and was passed on",
    "upstream_timeout": "nobody else was asked, since the work may have been nearly done",
}
# How the search ended while the last backend worked on it.
_LEFT = {
    "client_gone": "the client hung up while {} worked on it",
    "unavailable": "Caravan was stopped while {} worked on it",
    "cancelled": "an operator ended it while {} worked on it",
    "model_hidden": "{} did not know the model",
}


def explanation(trace: Trace, spent: Spent) -> str:
    """One sentence, such as "a was busy (503), b answered"."""
    if not trace.attempts:
        return _REFUSED.get(trace.outcome, "it was refused")
    # Whoever has no reason beside it has not failed.
    failed = [f"{name} {reason}" for name, reason in zip(trace.attempts, trace.reasons, strict=False)]
    return ", ".join([*failed, _end(trace, spent)])


def _end(trace: Trace, spent: Spent) -> str:
    last = trace.attempts[-1]
    if trace.first_byte_s is not None:
        return _ENDED[trace.outcome].format(last) if trace.outcome in _ENDED else _answered(last, trace, spent)
    if len(trace.reasons) < len(trace.attempts):
        return _LEFT[trace.outcome].format(last) if trace.outcome in _LEFT else _answered(last, trace, spent)
    if trace.outcome in ("cancelled", "client_gone"):
        return _REFUSED[trace.outcome].replace("a backend", "another one")
    return _ENDED.get(trace.outcome, "nobody else could be asked")


def _answered(name: str, trace: Trace, spent: Spent) -> str:
    if trace.status >= 400:
        return f"{name} refused it ({trace.status})"
    if spent.load_ms >= LOAD_MS:
        return f"{name} answered after loading the model for {spent.load_ms / 1000:.1f} s"
    return f"{name} answered"
