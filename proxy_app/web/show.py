"""`POST /api/show`, from the cache."""

from __future__ import annotations

from flask import Blueprint, request

from proxy_app.dialects.ollama import read_show
from proxy_app.web.guards import read_body
from proxy_app.web.respond import Raw, json_answer, runtime

# A name, a flag and two overlays. It is parsed whole, and 1 MiB of brackets takes 0.2 s in which nothing else moves.
LONGEST_SHOW = 256 << 10

blueprint = Blueprint("show", __name__)


@blueprint.post("/api/show")
def show() -> Raw:
    environ = request.environ
    services = runtime()
    body = read_body(environ, min(services.settings.max_body, LONGEST_SHOW))
    answer = services.catalog.show(read_show(body), body, environ.get("HTTP_USER_AGENT", ""))
    headers = [("X-Caravan-Cache", answer.cache), ("Age", str(answer.age_s))]
    return json_answer(answer.body, answer.status, headers)
