"""Everything that Caravan raises, and what follows from each error.

    CaravanError
    ├── ConfigError            the settings are wrong: the start stops
    ├── StoreError             Redis or SQLite did not do as asked
    │   ├── CacheAway          Redis refused, paused, slow or full
    │   ├── RegistryAway       SQLite locked, read-only, full or corrupt
    │   │   ├── RegistryTooNew   written by a newer Caravan
    │   │   └── RegistryDamaged  no SQLite file any more
    │   └── Fenced             another refresher holds a later epoch
    ├── RequestError           answered to the client as it is
    │   ├── BadRequest         400
    │   ├── Loop               508
    │   ├── Unauthorized       401
    │   ├── Limited            429 with Retry-After
    │   ├── BodyTooLarge       413
    │   ├── RequestTimeout     408
    │   ├── Forbidden          403
    │   ├── ModelNotFound      404
    │   ├── Missing            404, of what operators manage
    │   ├── Conflict           409
    │   ├── Unavailable        503 with Retry-After
    │   └── Cancelled          503, and nothing that invites to another try
    └── UpstreamError          one backend failed one attempt
        ├── Unreachable        nothing was sent
        ├── ConnectionLost     it may have been sent; no answer began
        ├── UpstreamTimeout    sent; no first byte in time
        ├── BadAnswer          something other than an HTTP answer
        └── Truncated          the answer began and was cut
            └── Silent           nothing more came in time

    ClientGone (BaseException) the client hung up: not an error of ours or of a backend
    Interrupted (BaseException) what still runs is ended by Caravan, in words
    ├── Stopping               the worker has to end, and its grace time is over
    └── Cancelling             an operator ends this request

`may_repeat` says whether another backend may get the same inference request: it changes no state, so it may be
repeated until the first byte went to the client, unless the work may be nearly done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class CaravanError(Exception):
    """Base of all errors that Caravan raises itself."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"


class ConfigError(CaravanError):
    """The settings are wrong; `problems` lists all of them, each naming its setting."""

    code = "config_error"

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


class StoreError(CaravanError):
    """A store did not do as asked."""

    code = "store_error"


class CacheAway(StoreError):
    """Redis cannot be used right now; callers go on without it."""

    code = "cache_away"


class RegistryAway(StoreError):
    """SQLite cannot be used right now; callers go on with what they know."""

    code = "registry_away"


class RegistryTooNew(RegistryAway):
    """The registry holds migrations that this version does not know."""

    code = "registry_too_new"


class RegistryDamaged(RegistryAway):
    """The registry's file cannot be read as a database; a new one is filled from the settings and the backends."""

    code = "registry_damaged"


class Fenced(StoreError):
    """The role of refresher has gone to another process; this one may not write."""

    code = "fenced"


class RequestError(CaravanError):
    """An answer to the client; its text is shown as it is."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BadRequest(RequestError):
    """The request itself is wrong."""

    status = 400
    code = "bad_request"


class ModelRequired(BadRequest):
    """The request names no model."""

    code = "model_required"

    def __init__(self) -> None:
        super().__init__("model is required")


class InvalidModelName(BadRequest):
    """The model's name breaks Ollama's naming rules."""

    code = "invalid_model_name"

    def __init__(self, message: str = "invalid model name") -> None:
        super().__init__(message)


class EmptyBody(BadRequest):
    """A body is needed and none came."""

    code = "empty_body"

    def __init__(self) -> None:
        super().__init__("missing request body")


class BodyTooLarge(RequestError):
    """The body is longer than CARAVAN_MAX_BODY."""

    status = 413
    code = "body_too_large"


class RequestTimeout(RequestError):
    """The client stopped in the middle of its request."""

    status = 408
    code = "request_timeout"


class Forbidden(RequestError):
    """Not allowed, whoever asks."""

    status = 403
    code = "forbidden"


class Loop(RequestError):
    """The request has been here before: a backend's URL leads back to Caravan."""

    status = 508
    code = "loop"

    def __init__(self) -> None:
        super().__init__("the request came back to Caravan: one of its backends is Caravan itself")


class Unauthorized(RequestError):
    """No key came, or one that is not good (any more)."""

    status = 401
    code = "unauthorized"

    def __init__(self, message: str = "unauthorized: a valid API key is needed") -> None:
        super().__init__(message)


class Limited(RequestError):
    """The key has used up one of its limits; `retry_after_s` goes out as Retry-After."""

    status = 429
    code = "limited"

    def __init__(self, limit: str, retry_after_s: int, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(f"this key has no {limit} left: try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s
        self.headers = headers


class Hidden(Forbidden):
    """The key may not use the model, or nobody hosts it: which of the two is not said."""

    code = "model_hidden"

    def __init__(self, model: str) -> None:
        super().__init__(f"model '{model}' is not available with this key")


class CloudDisabled(Forbidden):
    """No live backend may use Ollama's cloud."""

    code = "cloud_disabled"


class ModelNotFound(RequestError):
    """Nobody hosts the model and nobody did within CARAVAN_FORGET_AFTER."""

    status = 404
    code = "model_not_found"


class Missing(RequestError):
    """What an operator wants to change is not there."""

    status = 404
    code = "not_found"


class Conflict(RequestError):
    """What an operator wants cannot be, as things are now."""

    status = 409
    code = "conflict"


class Unavailable(RequestError):
    """Nobody can serve this now; `retry_after_s` goes out as Retry-After."""

    status = 503
    code = "unavailable"

    def __init__(self, message: str, retry_after_s: int = 2) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Cancelled(RequestError):
    """An operator ended the request before its answer began: whoever sends it again at once undoes that."""

    status = 503
    code = "cancelled"
    headers = (("x-should-retry", "false"),)

    def __init__(self) -> None:
        super().__init__(Cancelling.told)


class AllFailed(RequestError):
    """Every backend that was tried failed, and none left an answer worth showing."""

    status = 502
    code = "all_backends_failed"


class UpstreamError(CaravanError):
    """One attempt at one backend failed; the text is for logs, never for clients."""

    status = 502
    code = "upstream_error"
    may_repeat: ClassVar[bool] = True


class Unreachable(UpstreamError):
    """No connection: refused, no route, name not found, connect timeout. Nothing was sent."""

    code = "unreachable"


class ConnectionLost(UpstreamError):
    """Reset or closed before an answer began."""

    code = "connection_lost"


class UpstreamTimeout(UpstreamError):
    """No first byte within the time limit; the backend may still be working on it."""

    status = 504
    code = "upstream_timeout"
    may_repeat = False


class BadAnswer(UpstreamError):
    """The answer was not HTTP, or broke its framing before its first chunk."""

    code = "bad_answer"


class Truncated(UpstreamError):
    """The answer was cut, stalled or broken after it had begun.

    `told`: what the client is told.
    """

    code = "truncated"
    told: str = "the backend's answer was cut off: please try again"


class Silent(Truncated):
    """The answer had begun, and then nothing came for longer than the time limit."""

    code = "silent"

    def __init__(self, idle_s: float) -> None:
        super().__init__(f"silent for {idle_s:g} s")
        self.told = f"the backend said nothing more for {idle_s:g} s: please try again"


class ClientGone(BaseException):
    """The client hung up.

    A `BaseException`, as `gevent.Timeout` is: it is thrown into whatever the request waits for, and no
    `except Exception` or driver's handler on the way may take it for a failure of the backend.
    """


class Interrupted(BaseException):
    """Caravan ends what still runs, in words.

    A `BaseException` for the same reason: it is thrown into whatever a request waits for.

    Args:
        outcome: the log's word for it.
        told: what the client is told.
        cuts_a_piece: was a piece half out? Nothing that is said now would be read as what it is.
    """

    outcome: ClassVar[str]
    told: ClassVar[str]
    cuts_a_piece: bool = False


class Stopping(Interrupted):
    """The worker ends now, before the arbiter ends it without a word."""

    outcome = "stopped"
    told = "Caravan is being stopped: please try again"


class Deserting(Interrupted):
    """The backend that is asked has gone down: the next one is asked."""

    outcome = "deserted"
    told = "the backend went down: please try again"


class Cancelling(Interrupted):
    """An operator ends one request."""

    outcome = "cancelled"
    told = "an operator ended this request"
