"""What a browser is told about the admin pages: load nothing from elsewhere, be in no frame, keep nothing.

Source: OWASP ASVS 5.0, 3.4 and 14.3.2.
"""

from __future__ import annotations

from flask import Response

from proxy_app.web.callers import is_secure

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    ("Content-Security-Policy", POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
)
# A year: from then on a browser comes by https alone.
_BY_HTTPS = ("Strict-Transport-Security", "max-age=31536000")


def protect(response: Response) -> None:
    """Add what is not said yet."""
    for name, value in (*_HEADERS, *((_BY_HTTPS,) if is_secure() else ())):
        response.headers.setdefault(name, value)
