"""What the refresher asks backends, with `requests`: listings, versions, switches."""

from __future__ import annotations

import json
import math
import ssl
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.cookies import RequestsCookieJar
from requests.exceptions import RequestException
from urllib3.exceptions import HTTPError

from proxy_app.domain import Backend
from proxy_app.errors import BadAnswer, Unreachable, UpstreamError, UpstreamTimeout
from proxy_app.upstream import headers as rules
from proxy_app.upstream.client import Pool, TLSPool
from proxy_app.upstream.nets import ANYWHERE, Nets

# A listing of 20,000 models is about 8 MiB.
LONGEST_ANSWER = 32 << 20


@lru_cache(maxsize=1)
def _trust() -> ssl.SSLContext:
    """What this machine trusts. Read once: it takes 17 ms, and a fleet of 200 backends has 800 adapters."""
    return ssl.create_default_context()


class _Adapter(HTTPAdapter):
    """Trusts what the machine trusts (SSL_CERT_FILE included) and connects where it may, as the relay does."""

    def __init__(self, nets: Nets) -> None:
        self._nets = nets
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=_trust(), **kwargs)
        kinds = {"http": Pool, "https": TLSPool}
        self.poolmanager.pool_classes_by_scheme = {
            scheme: type(kind.__name__, (kind,), {"nets": self._nets}) for scheme, kind in kinds.items()
        }


class _NoCookies(RequestsCookieJar):
    def set_cookie(self, *args: Any, **kwargs: Any) -> None:
        """Keep none."""


class Prober:
    """Asks one backend. Not shared between threads: a session keeps its connection."""

    def __init__(self, backend: Backend, connect_s: float, read_s: float, via: str, nets: Nets = ANYWHERE) -> None:
        self._backend = backend
        self._connect_s, self._read_s = connect_s, read_s
        self._session = requests.Session()
        self._session.trust_env = False
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _Adapter(nets))
        self._session.cookies = _NoCookies()
        self._session.headers.update({"Via": via} | rules.own_headers(backend))

    def close(self) -> None:
        self._session.close()

    def tags(self) -> list[dict[str, Any]]:
        """`GET /api/tags`: the health probe too."""
        return self._models("/api/tags")

    def loaded(self) -> list[dict[str, Any]]:
        """`GET /api/ps`; it may block for 10 s on a healthy server, so it proves nothing."""
        return self._models("/api/ps")

    def version(self) -> str:
        return str(self._get("/api/version").get("version", ""))

    def cloud(self) -> tuple[bool | None, str | None]:
        """`GET /api/status`: is the cloud switched off, and by what; (None, None) where that is not said."""
        cloud = self._get("/api/status").get("cloud")
        if not isinstance(cloud, dict):
            return None, None
        return bool(cloud.get("disabled")), str(cloud.get("source", "none"))

    def recommendations(self) -> str:
        """`GET /api/experimental/model-recommendations`, as it goes out to clients."""
        found = self._get("/api/experimental/model-recommendations").get("recommendations")
        return json.dumps({"recommendations": found if isinstance(found, list) else []}, separators=(",", ":"))

    def _models(self, path: str) -> list[dict[str, Any]]:
        models = self._get(path).get("models")
        if not isinstance(models, list) or not all(isinstance(item, dict) for item in models):
            raise BadAnswer(f"{path} has no list of models")
        return models

    def _get(self, path: str) -> Mapping[str, Any]:
        """One GET, bounded in time and size.

        Raises:
            UpstreamError: with a text for the operator.
        """
        deadline = time.monotonic() + self._read_s
        try:
            with self._session.get(
                self._backend.url + path,
                timeout=(self._connect_s, self._read_s),
                allow_redirects=False,
                stream=True,
            ) as response:
                body = _read(response, deadline)
                if response.status_code != 200:
                    raise BadAnswer(_LOOP if response.status_code == 508 else f"{path} answered {response.status_code}")
        except RequestException as exc:
            raise _mapped(exc, path, self._read_s) from exc
        except (HTTPError, ValueError) as exc:
            # What requests lets through: a host that is none.
            raise Unreachable(f"its address makes no sense: {exc}") from exc
        return _object(body, path)


def _read(response: requests.Response, deadline: float) -> bytes:
    body = b""
    for piece in response.iter_content(65536):
        body += piece
        if time.monotonic() > deadline:
            raise UpstreamTimeout("the answer trickles")
        if len(body) > LONGEST_ANSWER:
            raise BadAnswer("the answer is too long")
    return body


def _object(body: bytes, path: str) -> Mapping[str, Any]:
    try:
        # Strictly: given bytes, Python reads halves of surrogate pairs from them, and UTF-16.
        answer = json.loads(body.decode(), parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        raise BadAnswer(f"{path} answered no JSON") from None
    if not isinstance(answer, dict):
        raise BadAnswer(f"{path} answered no object")
    if b"\\ud" in body.lower() and not _is_text(answer):
        raise BadAnswer(f"{path} answered text that is no Unicode")
    return answer


def _is_text(answer: Mapping[str, Any]) -> bool:
    """Half a surrogate pair can be read from JSON, and written nowhere."""
    try:
        json.dumps(answer, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number that can be passed on")
    return number


def _mapped(exc: RequestException, path: str, read_s: float) -> UpstreamError:
    if isinstance(exc, requests.ConnectTimeout):
        return Unreachable("no connection in time")
    if isinstance(exc, requests.Timeout):
        return UpstreamTimeout(f"{path} did not answer within {read_s:g} s")
    text = str(exc)
    known = next((words for mark, words in _CAUSES.items() if mark in text), None)
    if known is not None:
        return Unreachable(known)
    if isinstance(exc, requests.exceptions.SSLError):
        return Unreachable("TLS failed: is it plain http there?")
    if isinstance(exc, requests.ConnectionError):
        return Unreachable("the connection was closed without an answer: is it https there?")
    return BadAnswer(f"{path}: no HTTP answer")


# What a 508 means: Caravan says it to a request that it has sent itself.
_LOOP = "that address leads back to Caravan itself"
# What stands in the errors of the drivers, and what an operator makes of it.
_CAUSES = {
    "CARAVAN_BACKEND_NETS": "its address is not one that CARAVAN_BACKEND_NETS allows",
    "CERTIFICATE_VERIFY_FAILED": "its TLS certificate is not trusted on this machine",
    "refused": "connection refused",
    "resolve": "the name cannot be resolved",
    "Name or service": "the name cannot be resolved",
}
