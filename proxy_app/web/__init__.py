"""The only Flask code: blueprints, guards, the gunicorn worker."""
