"""The account at ollama.com of one backend, which the operator names."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from proxy_app.domain import Backend
from proxy_app.errors import AllFailed, Forbidden, Unavailable, UpstreamError
from proxy_app.services.fleet import FleetReloader
from proxy_app.services.relayed import Answer, Client, with_length
from proxy_app.upstream.client import Call, Limits, UpstreamClient

log = logging.getLogger(__name__)

# Enough of an answer about an account.
ANSWER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Account:
    """Passes requests about an account on to its backend. Owned by: the worker's runtime.

    Args:
        name: of the backend; None where nobody said.
    """

    reloader: FleetReloader
    upstream: UpstreamClient
    limits: Limits
    name: str | None

    def ask(self, call: Call, client: Client) -> Answer:
        """The backend's own answer, a 401 with its `signin_url` included.

        Raises:
            Forbidden: no backend is named.
            Unavailable: there is none of that name.
            AllFailed: it gave no answer.
        """
        backend = self._backend()
        try:
            with client.watch():
                return self._ask(backend, call)
        except UpstreamError as exc:
            log.warning("%s: %s", call.request_id, exc)
            raise AllFailed(f"the backend {backend.name} gave no answer") from None

    def _ask(self, backend: Backend, call: Call) -> Answer:
        answer = self.upstream.send(backend, call, self.limits)
        try:
            body = answer.read_up_to(ANSWER_BYTES)
            return Answer(answer.status, answer.reason, with_length(answer.headers, body), body)
        finally:
            answer.close()

    def _backend(self) -> Backend:
        if self.name is None:
            raise Forbidden(
                "whose account? Set CARAVAN_ACCOUNT_BACKEND to the name of the backend that this should be about"
            )
        backends = [member.backend for member in self.reloader.fleet.members]
        found = next((backend for backend in backends if backend.name == self.name), None)
        if found is None:
            known = ", ".join(backend.name for backend in backends)
            raise Unavailable(f"CARAVAN_ACCOUNT_BACKEND names {self.name}: there is no such backend, but {known}")
        return found
