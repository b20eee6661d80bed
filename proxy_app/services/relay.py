"""Inference requests: sent to a live backend that hosts the model, failed over until the first byte, then relayed."""

from __future__ import annotations

from dataclasses import dataclass

from proxy_app.dialects.inference import CLOUD_DISABLED, InferenceRoute
from proxy_app.domain import Fleet, parse_name
from proxy_app.errors import ClientGone, CloudDisabled, RequestError, Stopping, Unavailable
from proxy_app.routing import policy
from proxy_app.services.fleet import FleetReloader, all_down, check_seen
from proxy_app.services.relayed import STOPPING, Answer, Client, Trace
from proxy_app.services.search import Asking, Parts, Search
from proxy_app.upstream.client import Call


@dataclass(frozen=True, slots=True)
class Relay:
    """Relays inference requests of one worker. Owned by: the worker's runtime; all state is its parts'."""

    reloader: FleetReloader
    parts: Parts

    def answer(self, route: InferenceRoute, call: Call, model: str, client: Client) -> Answer:
        """Answer one request; the caller iterates the body and calls `close` whatever happens.

        Raises:
            RequestError: nothing can be passed on; the text is for the client.
            ClientGone: the client hung up.
        """
        trace = Trace(call.request_id, route.path, model)
        try:
            search = self._search(route, call, client, trace)
            with self.parts.budget.request(), client.watch():
                return search.run()
        except ClientGone:
            trace.status, trace.outcome = 499, "client_gone"
            trace.write()
            raise
        except Stopping:
            trace.status, trace.outcome = Unavailable.status, "stopped"
            trace.write()
            raise Unavailable(STOPPING, retry_after_s=1) from None
        except RequestError as exc:
            trace.status, trace.outcome = exc.status, exc.code
            trace.write()
            raise

    def _search(self, route: InferenceRoute, call: Call, client: Client, trace: Trace) -> Search:
        if route.no_cloud is not None:
            fleet = self.reloader.fleet
            # No model has its name: what fails here says nothing of the backend's models.
            asking = Asking(route, call, route.path, _cloud_candidates(fleet, route.no_cloud), client, is_listed=False)
            return Search(self.parts, asking, fleet, trace)
        if not trace.model:
            raise route.missing
        name = parse_name(trace.model)
        fleet = self.reloader.knowing(name.canonical)
        tiers = _cloud_candidates(fleet, CLOUD_DISABLED) if name.is_cloud else _candidates(fleet, route, trace.model)
        # A cloud model and a local one of the same name have nothing in common but that.
        key = f"{name.space}:{name.canonical}" if name.is_cloud else name.canonical
        return Search(self.parts, Asking(route, call, key, tiers, client, not name.is_cloud), fleet, trace)


def _candidates(fleet: Fleet, route: InferenceRoute, model: str) -> list[policy.Tier]:
    """Who may be asked.

    Raises:
        RequestError: nobody, and why.
    """
    name = parse_name(model)
    tiers = policy.hosts(fleet, name.canonical)
    if tiers:
        return tiers
    if name.canonical in fleet.holders:
        raise all_down(name)
    check_seen(fleet)
    raise route.unknown(model)


def _cloud_candidates(fleet: Fleet, disabled: CloudDisabled) -> list[policy.Tier]:
    tiers = policy.cloud_hosts(fleet)
    if tiers:
        return tiers
    if fleet.forbids_cloud:
        raise disabled
    raise Unavailable("no backend that may use the cloud is up")
