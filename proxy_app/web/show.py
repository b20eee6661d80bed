"""`POST /api/show`, from the cache."""

from __future__ import annotations

from flask import g, request

from proxy_app.dialects.ollama import read_show
from proxy_app.web.bodies import read_short_body
from proxy_app.web.respond import Raw, json_answer, private, runtime


def show() -> Raw:
    body = read_short_body()
    answer = runtime().catalog.show(read_show(body), body, request.environ.get("HTTP_USER_AGENT", ""), g.caller)
    headers = [("X-Caravan-Cache", answer.cache), ("Age", str(answer.age_s)), *private()]
    return json_answer(answer.body, answer.status, headers)
