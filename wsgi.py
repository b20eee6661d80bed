"""The WSGI entry point: `gunicorn wsgi:app` (which finds `gunicorn.conf.py`)."""

from proxy_app import create_app

app = create_app()
