"""The gateway that everybody writes first: a Flask view that does `requests.post`.

Served as Caravan is: `gunicorn --worker-class gevent --workers N bench.baselines.naive:app`.
"""

from __future__ import annotations

import os

import requests
from flask import Flask, Response, request

BACKEND = os.environ.get("BENCH_BACKEND", "")
TIMEOUT_S = 30

app = Flask(__name__)


@app.post("/api/show")
def show() -> Response:
    answer = requests.post(f"{BACKEND}/api/show", json=request.get_json(), timeout=TIMEOUT_S)
    return Response(answer.content, answer.status_code, content_type=answer.headers["Content-Type"])


@app.get("/api/tags")
def tags() -> Response:
    answer = requests.get(f"{BACKEND}/api/tags", timeout=TIMEOUT_S)
    return Response(answer.content, answer.status_code, content_type=answer.headers["Content-Type"])


@app.get("/livez")
def livez() -> str:
    return "ok"
