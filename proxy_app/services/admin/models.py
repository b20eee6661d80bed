"""The models of all backends as an operator sees them, and what an operator does with them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from proxy_app.domain import Backend, Caller, Fleet, Holding, parse_name
from proxy_app.errors import BadRequest, Conflict, Missing, UpstreamError
from proxy_app.services.admin.events import EventBook
from proxy_app.services.admin.said import number, text
from proxy_app.services.admin.shapes import CacheView, HolderView, ModelsView, ModelView
from proxy_app.services.catalog import Catalog
from proxy_app.services.fleet import FleetReloader
from proxy_app.services.loads import is_warm
from proxy_app.services.relayed import Answer, Client
from proxy_app.services.store_ops import StoreOps
from proxy_app.upstream.client import Call, Limits, UpstreamClient
from proxy_app.upstream.headers import Origin

PAGE = 50
FOR_EVER = -1
# Enough of an answer to a load.
ANSWER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelDesk:
    """Owned by: the worker's runtime. Methods raise RequestErrors with texts for the operator."""

    reloader: FleetReloader
    catalog: Catalog
    store: StoreOps
    upstream: UpstreamClient
    limits: Limits
    events: EventBook

    def page(self, query: str, page: int) -> ModelsView:
        """The models whose name has a text in it, in the order of their names.

        Args:
            page: from 1; beyond the end it is the last one.
        """
        fleet, wanted = self.reloader.fleet, query.strip().lower()
        found = sorted(name for name in fleet.holders if wanted in fleet.holders[name][0].name.lower())
        pages = max(1, math.ceil(len(found) / PAGE))
        page = min(max(1, page), pages)
        shown = found[(page - 1) * PAGE : page * PAGE]
        hits = self.catalog.hits(shown)
        models = [self._view(fleet, *each) for each in zip(shown, hits, strict=True)]
        return ModelsView(models=models, total=len(found), page=page, pages=pages, query=query)

    def pull(self, model: str, backends: Sequence[str], origin: Origin, client: Client, caller: Caller) -> Answer:
        """Pull a model to these backends, with one progress in Ollama's form."""
        known = {member.backend.name for member in self.reloader.fleet.members}
        strangers = [name for name in backends if name not in known]
        if strangers or not backends:
            raise BadRequest(f"no backend of that name: {', '.join(strangers)}" if strangers else "name a backend")
        there = replace(self.store, pull_to=tuple(backends))
        return there.pull(_call("POST", "/api/pull", {"model": model, "stream": True}, origin), client, caller)

    def check_free(self, model: str) -> None:
        """Raises: Conflict: somebody holds a model of this name, which a copy would take the place of."""
        fleet, name = self.reloader.fleet, parse_name(model)
        held = fleet.holders.get(name.canonical, ())
        if held:
            backends = ", ".join(fleet.by_id[each.backend_id].backend.name for each in held)
            raise Conflict(
                f"{name.shortest} exists already on {backends}: what it is now would be lost, unless another name has "
                "it, too. With replace: true the copy takes its place"
            )

    def copy(self, source: str, destination: str, origin: Origin, client: Client, caller: Caller) -> Answer:
        fields = {"source": source, "destination": destination}
        return self.store.copy(_call("POST", "/api/copy", fields, origin), client, caller)

    def delete(self, model: str, origin: Origin, client: Client, caller: Caller) -> Answer:
        """Delete a model from every backend that holds it."""
        return self.store.delete(_call("DELETE", "/api/delete", {"model": model}, origin), client, caller)

    def load(self, model: str, backend: str, keep_alive_s: float | None, origin: Origin, caller: Caller) -> None:
        """Load a model, and keep it for a time; None: until it is unloaded.

        Raises:
            Missing: that backend does not hold it.
            Conflict: it could not do so.
        """
        keep = FOR_EVER if keep_alive_s is None else math.ceil(keep_alive_s)
        self._keep(model, backend, keep, origin)
        told = "for good" if keep_alive_s is None else f"for {keep} s"
        self.events.note("model.loaded", caller.key_id, model, f"was loaded on {backend} {told}")

    def unload(self, model: str, backend: str, origin: Origin, caller: Caller) -> None:
        """Raises: as `load`."""
        self._keep(model, backend, 0, origin)
        self.events.note("model.unloaded", caller.key_id, model, f"was unloaded from {backend}")

    def _keep(self, model: str, backend: str, keep_alive: int, origin: Origin) -> None:
        """A request without a prompt does nothing but load or unload (Ollama docs/api.md)."""
        holder = self._holder(model, backend)
        fields = {"model": model, "keep_alive": keep_alive, "stream": False}
        try:
            answer = self.upstream.send(holder, _call("POST", "/api/generate", fields, origin), self.limits)
            try:
                body = answer.read_up_to(ANSWER_BYTES)
            finally:
                answer.close()
        except UpstreamError as exc:
            raise Conflict(f"{backend} did not do it: {exc}") from None
        if answer.status != 200:
            raise Conflict(f"{backend} refused with {answer.status}: {_error_of(body)}")
        # The pages show it by the end of this; a server answers before it has freed the memory.
        pair = holder.id, parse_name(model).canonical
        self.store.visibility.watch(holder.id, lambda: is_warm(self.reloader.fleet, pair) == bool(keep_alive))

    def _holder(self, model: str, name: str) -> Backend:
        fleet, canonical = self.reloader.fleet, parse_name(model).canonical
        for held in fleet.holders.get(canonical, ()):
            if fleet.by_id[held.backend_id].backend.name == name:
                return fleet.by_id[held.backend_id].backend
        raise Missing(f"{name} does not hold {model}")

    def _view(self, fleet: Fleet, canonical: str, hits: int | None) -> ModelView:
        holders = fleet.holders[canonical]
        best = holders[0]
        entry = self.catalog.peek(canonical)
        document = _read(entry.body) if entry else {}
        details = best.item.get("details")
        details = details if isinstance(details, dict) else {}
        return ModelView(
            name=best.name,
            digest=best.digest,
            holders=[_holder(fleet, held, best) for held in holders],
            size=number(best.item.get("size")),
            modified_at=_text(best.item.get("modified_at")),
            family=_text(details.get("family")),
            parameter_size=_text(details.get("parameter_size")),
            quantization=_text(details.get("quantization_level")),
            capabilities=_capabilities(best.item, document),
            context_length=_context_length(document),
            cache=CacheView(
                stored_at=entry.stored_at if entry else None, size=len(entry.body) if entry else None, hits=hits
            ),
        )


def _holder(fleet: Fleet, held: Holding, best: Holding) -> HolderView:
    member = fleet.by_id[held.backend_id]
    return HolderView(
        backend=member.backend.name,
        digest=held.digest,
        is_live=member.is_live,
        is_current=held.digest == best.digest,
        is_loaded=held.backend_id in fleet.warm.get(held.canonical, ()),
    )


def _call(method: str, path: str, fields: Mapping[str, Any], origin: Origin) -> Call:
    return Call(method, path, json.dumps(fields).encode(), (("Content-Type", "application/json"),), origin)


def _read(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _error_of(body: bytes) -> str:
    return str(_read(body).get("error") or "it gave no reason")


def _capabilities(item: Mapping[str, Any], document: Mapping[str, Any]) -> list[str]:
    found = item.get("capabilities") or document.get("capabilities") or []
    return [text(word) for word in found] if isinstance(found, list) else []


def _context_length(document: Mapping[str, Any]) -> int | None:
    """`<architecture>.context_length` of the GGUF's metadata."""
    info = document.get("model_info")
    if not isinstance(info, dict):
        return None
    return next((number(value) for key, value in info.items() if key.endswith(".context_length")), None)


def _text(value: object) -> str | None:
    return text(value) if value else None
